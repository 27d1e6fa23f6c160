"""One run at a time writes to a root in a store."""

import json
import os
import socket
import threading

import pytest

from instructretro_jax.pipeline import paths, root_lock, store_lock
from instructretro_jax.pipeline.manifest import StageError, write_text


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  for name, secs in {'RENEWED_SECS': 0.2, 'DEAD_SECS': 1.0, '_SETTLED_SECS': 0.1}.items():
    monkeypatch.setattr(store_lock, name, secs)


def hold(store, **changes):
  """The lock as another process has left it."""
  holder = {
    'process': os.getpid(),
    'host': 'elsewhere',
    'since': 'noon',
    'token': 't',
    'renewed': 1,
  }
  write_text(store / root_lock.LOCK, json.dumps(holder | changes))


def test_it_is_held_renewed_and_given_back(store):
  with root_lock.held(store):
    first = (store / root_lock.LOCK).read_text()
    with root_lock.held(store):  # a stage of the run
      pass
    threading.Event().wait(0.5)
    later = (store / root_lock.LOCK).read_text()
    assert json.loads(later)['renewed'] > json.loads(first)['renewed']
  assert paths.files_below(store) == {}


def test_one_that_is_renewed_is_refused_and_named(store):
  hold(store)
  ended = threading.Event()

  def renew():
    count = 1
    while not ended.wait(0.1):
      hold(store, renewed=(count := count + 1))

  renewing = threading.Thread(target=renew)
  renewing.start()
  try:
    with pytest.raises(StageError, match='process .* on host elsewhere since noon: wait for it'):
      root_lock.held(store).__enter__()
  finally:
    ended.set()
    renewing.join()


@pytest.mark.parametrize('host', ['elsewhere', 'here'])
def test_that_of_a_process_which_has_died_is_taken_over(store, host, monkeypatch):
  if host == 'here':
    monkeypatch.setattr(store_lock, 'DEAD_SECS', 1e9)
    hold(store, host=socket.gethostname(), process=2**22 + 1)
  else:
    hold(store)
  with root_lock.held(store):
    assert json.loads((store / root_lock.LOCK).read_text())['process'] == os.getpid()
  assert not (store / root_lock.LOCK).exists()


def test_it_is_not_given_back_when_another_has_taken_it(store):
  with root_lock.held(store):
    hold(store)
    threading.Event().wait(0.5)  # nor written anew
  assert json.loads((store / root_lock.LOCK).read_text())['host'] == 'elsewhere'


def test_a_bucket_that_is_not_there_is_named(store):
  root = paths.to_path(str(store).replace('bucket', 'no-such-bucket'))
  with pytest.raises(StageError, match='there is no bucket no-such-bucket'):
    root_lock.held(root).__enter__()

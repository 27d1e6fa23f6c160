"""One run at a time on a root: whoever comes second is told who holds it."""

import os
import random
import socket
import subprocess
import sys
import time

import pytest

from instructretro_jax.pipeline import root_lock
from instructretro_jax.pipeline.manifest import StageError

WORKER = """
import dataclasses, sys, time
from pathlib import Path
from instructretro_jax.pipeline import manifest, stage
from instructretro_jax.pipeline.experiment import Experiment, run

@dataclasses.dataclass(frozen=True, kw_only=True)
class Count(stage.Stage):
  def build(self, root, folder):
    folder.mkdir(exist_ok=True)
    for n in range(20):
      time.sleep(0.005)
      with (folder / 'lines').open('a') as file:
        file.write(f'{n}\\n')
    lines = (folder / 'lines').read_text().split()
    return {'lines': len(lines)}

try:
  run(Experiment((Count(name='count'),)), Path(sys.argv[1]), log=print)
except manifest.StageError as error:
  sys.exit(f'error: {error}')
"""


def start(root):
  return subprocess.Popen(
    [sys.executable, '-c', WORKER, str(root)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def holder(process=None, host=None):
  return f'{process or os.getpid()}\n{host or socket.gethostname()}\n'


def test_the_lock_is_held_once_and_given_back(tmp_path):
  root = tmp_path / 'new'
  with root_lock.held(root), root_lock.held(root):
    lines = (root / root_lock.LOCK).read_text().splitlines()
    assert lines[:2] == [str(os.getpid()), socket.gethostname()]
  assert list(root.iterdir()) == []


def test_a_holder_on_another_host_is_named_with_the_remedy(tmp_path, monkeypatch):
  monkeypatch.setattr(root_lock, '_WAIT_SECS', 0.1)
  (tmp_path / root_lock.LOCK).write_text(holder(17, 'elsewhere'))
  with (
    pytest.raises(
      StageError, match=r'process 17 on host elsewhere since 20.*choose another --root; .*run.lock'
    ),
    root_lock.held(tmp_path),
  ):
    pass
  assert (tmp_path / root_lock.LOCK).exists()


def test_a_holder_of_this_host_that_has_died_is_taken_over(tmp_path):
  dead = subprocess.Popen([sys.executable, '-c', ''])
  dead.wait()
  (tmp_path / root_lock.LOCK).write_text(holder(dead.pid))
  with root_lock.held(tmp_path):
    assert (tmp_path / root_lock.LOCK).read_text().startswith(f'{os.getpid()}\n')


@pytest.mark.parametrize('secs', [0.0, 0.05, 0.15])
def test_two_runs_end_well_or_one_is_told_who_holds_the_root(tmp_path, secs):
  first = start(tmp_path)
  time.sleep(secs)
  second = start(tmp_path)
  check(tmp_path, [first, second])


def check(root, processes):
  said = [process.communicate() for process in processes]
  codes = [process.returncode for process in processes]
  assert 0 in codes, said
  for code, (_, errors) in zip(codes, said):
    assert code == 0 or 'is in use by another run, process' in errors, errors
  assert (root / 'count' / 'lines').read_text().split() == [str(n) for n in range(20)]


@pytest.mark.slow(minutes=3)
def test_a_hundred_pairs_of_runs(tmp_path):
  draw = random.Random(0)
  for n in range(100):
    first = start(tmp_path / str(n))
    time.sleep(draw.uniform(0, 0.6))
    check(tmp_path / str(n), [first, start(tmp_path / str(n))])

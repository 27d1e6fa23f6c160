"""A process that fails or dies ends the others, which wait for it in a collective."""

import socket
import time

import pytest

from tests.pipeline.test_hosts import free_port, start

HOST = socket.gethostname()


def begin(root, way, count=2):
  module = ['-m', 'tests.pipeline.watch_worker', str(free_port()), str(count)]
  return [start([*module, str(index), str(root), way], 1) for index in range(count)]


def end(processes, secs):
  """Status and stderr of each, all of which have ended by then."""
  until = time.monotonic() + secs
  try:
    found = [p.communicate(timeout=max(0.1, until - time.monotonic())) for p in processes]
  finally:
    for process in processes:
      process.kill()
  return [
    (process.returncode, [line for line in stderr.splitlines() if not line.startswith('[Gloo]')])
    for process, (_, stderr) in zip(processes, found)
  ]


def kill_when_met(processes, victim):
  for process in processes:
    while 'met' not in (line := process.stdout.readline()):
      assert line
  processes[victim].kill()
  return processes


def test_an_error_ends_all_with_the_name_of_who_failed(tmp_path):
  first, second = end(begin(tmp_path, 'raises_1'), 60)
  assert first == (1, [f'error: process 1 ({HOST}): the disk is full'])
  assert second == (1, ['error: the disk', 'is full'])


@pytest.mark.slow(minutes=1)
def test_an_error_and_a_good_end_among_three(tmp_path):
  found = end(begin(tmp_path, 'raises_0', 3), 60)
  assert [status for status, _ in found] == [1, 1, 1]
  assert found[1][1] == found[2][1] == [f'error: process 0 ({HOST}): the disk is full']
  assert end(begin(tmp_path, 'ends', 3), 60) == [(0, [])] * 3


@pytest.mark.slow(minutes=1)
@pytest.mark.parametrize('victim', [0, 1])
@pytest.mark.parametrize('waiting', [0, 1])
def test_the_death_of_a_process_ends_the_others_at_once(tmp_path, victim, waiting):
  """Of the one that waits for it in a collective, and of the one that is waited for."""
  found = end(kill_when_met(begin(tmp_path, f'waits_{waiting}', 3), victim), 10)
  said = f'error: process {victim} ({HOST}) was killed, or its host or network is down'
  for index, (status, lines) in enumerate(found):
    assert status != 0
    # JAX has words of its own for the end of process 0
    assert index == victim or (said in lines if victim == 0 else [said] == lines), lines


@pytest.mark.slow(minutes=1)
@pytest.mark.parametrize('index', [0, 1])
def test_a_slow_process_is_not_ended(tmp_path, index):
  """It holds Python's lock, so that no thread of it could say that it lives."""
  assert end(begin(tmp_path, f'is_slow_{index}'), 60) == [(0, [])] * 2

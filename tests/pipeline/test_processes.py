"""Processes that are started, waited for and stopped."""

from concurrent import futures
import os
import signal

from instructretro_jax.pipeline.processes import Processes, last_line


def test_a_signal_is_passed_on_and_nothing_starts_after_it(tmp_path):
  processes, lines = Processes(), []
  before = signal.getsignal(signal.SIGTERM)

  def on_line(line):
    lines.append(line)
    os.kill(os.getpid(), signal.SIGTERM)

  script = 'trap "echo ended >&2; exit 75" TERM; echo up; for n in $(seq 200); do sleep 0.05; done'
  with processes.passing_signals_on(), futures.ThreadPoolExecutor(1) as pool:
    one = pool.submit(processes.run, ['sh', '-c', script], tmp_path / 'stderr', on_line)
    other = pool.submit(processes.run, ['sh', '-c', 'echo up'], tmp_path / 'other', on_line)
    assert (one.result(20), other.result(20)) == (75, None)
  assert lines == ['up'] and processes.stopped_by == signal.SIGTERM
  assert last_line(tmp_path / 'stderr') == 'ended'
  assert signal.getsignal(signal.SIGTERM) is before


def test_the_last_line_is_that_of_a_redrawn_bar(tmp_path):
  (tmp_path / 'log').write_bytes(b'first\nbar 1\rbar 2 \xff\n\n')
  assert last_line(tmp_path / 'log') == 'bar 2 \N{REPLACEMENT CHARACTER}'
  (tmp_path / 'log').write_text('')
  assert last_line(tmp_path / 'log') == ''

"""A bar is redrawn on a terminal and adds lines, not too many, to a log file."""

import io
import itertools
import re

import pytest

from instructretro_jax.pipeline import progress


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def slow_clock(monkeypatch):
  """Each look at the clock takes four seconds."""
  ticks = itertools.count(step=4)
  real = progress.tqdm.tqdm.__init__

  def init(self, *args, **kwargs):
    real(self, *args, **kwargs)
    self._time = lambda: next(ticks)
    self.start_t = self.last_print_t = self._time()

  monkeypatch.setattr(progress.tqdm.tqdm, '__init__', init)


def test_a_terminal_has_one_line_that_is_redrawn():
  file = Terminal()
  for _ in progress.Bar(range(5), desc='work', file=file, mininterval=0):
    pass
  drawn = file.getvalue()
  assert drawn.count('\n') == 1 and drawn.endswith('\n')
  assert drawn.count('\rwork:') == 7  # at the start, after each, at the end
  assert '5/5' in drawn.rsplit('\r', 1)[1]


def test_a_log_file_has_whole_lines_and_always_the_last():
  file = io.StringIO()
  for _ in progress.Bar(range(1000), desc='work', unit='shard', mininterval=0, file=file):
    pass
  (line,) = file.getvalue().splitlines(keepends=True)  # it took no 10 s
  assert re.fullmatch(r'work: 100% 1000/1000 \[00:00<00:00, .*shard/s\]\n', line)


def test_a_log_file_has_a_line_every_ten_seconds(slow_clock):
  file = io.StringIO()
  with progress.Bar(total=10, initial=2, desc='work', file=file) as bar:
    for _ in range(8):
      bar.update()
      bar.set_postfix(loss='1.5', refresh=False)
  lines = file.getvalue().splitlines()
  assert '\r' not in file.getvalue() and '' not in lines
  done = [int(re.match(r'work: \d+% (\d+)/10 \[', line)[1]) for line in lines]
  # three looks of 4 s are 12 s
  assert done[-1] == 10 and 3 <= len(done) <= 4 and done == sorted(set(done))
  assert 'loss=1.5' in lines[-1]


def test_bars_inside_bars_leave_only_whole_lines_of_the_outer():
  file = io.StringIO()
  for _ in progress.Bar(range(2), desc='outer', file=file):
    for _ in progress.Bar(range(3), desc='inner', leave=False, file=file):
      pass
  assert [line.split(':')[0] for line in file.getvalue().splitlines()] == ['outer']


def test_a_count_without_an_end_is_logged():
  file = io.StringIO()
  for _ in progress.Bar(iter(range(7)), desc='work', unit=' documents', file=file):
    pass
  assert file.getvalue().startswith('work: 7 documents [')

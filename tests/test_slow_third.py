"""Each slow test is in one third; what does not fit into the minutes is named and no failure."""

import os
from pathlib import Path
import re
import subprocess
import sys

import pytest

from tests import slow_third

ROOT = Path(__file__).parent.parent
TESTS = """
import pytest

@pytest.mark.slow
@pytest.mark.parametrize('n', range(9))
def test_slow(n):
  pass

@pytest.mark.slow(minutes=30)
def test_slowest():
  pass

def test_quick():
  pass
"""
QUICK, SLOWEST = 'test_some.py::test_quick', 'test_some.py::test_slowest'
SLOW = {f'test_some.py::test_slow[{n}]' for n in range(9)} | {SLOWEST}


@pytest.fixture
def run(tmp_path, monkeypatch):
  """A function from options to the ids of what passed, and all that pytest printed."""
  (tmp_path / 'test_some.py').write_text(TESTS)
  (tmp_path / 'pytest.ini').write_text('[pytest]\nmarkers = slow')
  monkeypatch.chdir(tmp_path)

  def run_(*options):
    command = [sys.executable, '-m', 'pytest', '-v', '-p', 'tests.slow_third', *options]
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return set(re.findall(r'(\S+) PASSED', done.stdout)), done.stdout

  return run_


@pytest.mark.slow
def test_three_hashes_run_each_slow_test_once(run):
  passed = [run('-m', 'slow', f'--slow_third={commit}')[0] for commit in ('a0', 'a1', 'a2')]
  assert {SLOWEST} in passed  # it takes longer than all others
  assert sorted(map(len, passed)) == [1, 4, 5] and set.union(*passed) == SLOW
  assert run('--slow_third=a0')[0] == passed[0] | {QUICK}


def test_thirds_take_about_as_long():
  minutes = {f'test_{n}': 1 + n % 7 for n in range(50)}
  found = slow_third.thirds(minutes)
  assert sorted(i for ids in found for i in ids) == sorted(minutes)
  lengths = [sum(minutes[i] for i in ids) for ids in found]
  assert max(lengths) - min(lengths) <= 1
  assert slow_third.thirds(dict(reversed(minutes.items()))) == found


def test_commits_spread_over_the_thirds():
  assert [slow_third.picked_by(f'9dde179{n}') for n in '3456'] == [0, 1, 2, 0]
  with pytest.raises(ValueError, match='HEAD'):
    slow_third.picked_by('HEAD')


def test_what_does_not_fit_is_named(run):
  passed, printed = run('--slow_minutes=0')
  assert passed == {QUICK}
  assert '10 slow tests did not fit into the minutes' in printed
  assert set(printed.split('did not fit into the minutes')[1].split()) > SLOW
  passed, printed = run('--slow_minutes=20')
  assert passed == SLOW - {SLOWEST} | {QUICK}
  assert '1 slow tests did not fit' in printed
  passed, printed = run('--slow_minutes=40')
  assert passed == SLOW | {QUICK} and 'did not fit' not in printed

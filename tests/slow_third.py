"""Options of pytest: the third of the slow tests that a commit picks, and minutes for them.

Each commit runs a third of the slow tests, picked by its hash, so that all are run within a few
commits. `slow(minutes=...)` of a test says how long it takes on one quiet core, 1 if not given.
"""

import time

import pytest

THIRDS = 3
_REASON = 'no minutes left'
_END = pytest.StashKey[float | None]()  # of time.monotonic


def thirds(minutes: dict[str, float]) -> list[set[str]]:
  """Ids of tests in three sets that take about as long: the longest first, each to the shortest."""
  sets: list[set[str]] = [set() for _ in range(THIRDS)]
  for test_id in sorted(minutes, key=lambda test_id: (-minutes[test_id], test_id)):
    min(sets, key=lambda ids: sum(minutes[i] for i in ids)).add(test_id)
  return sets


def picked_by(commit: str) -> int:
  """The third that a commit runs; ValueError if `commit` is no hash."""
  return int(commit, 16) % THIRDS


def minutes_of(item: pytest.Item) -> float | None:
  """How long a slow test takes; None of others."""
  marker = item.get_closest_marker('slow')
  return None if marker is None else marker.kwargs.get('minutes', 1)


def pytest_addoption(parser):
  group = parser.getgroup('slow tests')
  group.addoption('--slow_third', metavar='COMMIT', help='run the third that this hash picks')
  group.addoption(
    '--slow_minutes', type=float, metavar='N', help='skip, and name, what does not fit'
  )


def pytest_configure(config):
  minutes = config.getoption('slow_minutes')
  config.stash[_END] = None if minutes is None else time.monotonic() + 60 * minutes


@pytest.hookimpl(tryfirst=True)  # before -m leaves tests out
def pytest_collection_modifyitems(config, items):
  """Leaves the slow tests of the other thirds out; others are not touched."""
  if (commit := config.getoption('slow_third')) is None:
    return
  slow = {item.nodeid: minutes_of(item) for item in items if minutes_of(item) is not None}
  others = slow.keys() - thirds(slow)[picked_by(commit)]
  config.hook.pytest_deselected(items=[item for item in items if item.nodeid in others])
  items[:] = [item for item in items if item.nodeid not in others]


def pytest_runtest_setup(item):
  end, minutes = item.config.stash[_END], minutes_of(item)
  if end is not None and minutes is not None and time.monotonic() + 60 * minutes > end:
    pytest.skip(_REASON)


def pytest_terminal_summary(terminalreporter):
  skipped = terminalreporter.stats.get('skipped', [])
  late = [report.nodeid for report in skipped if _REASON in str(report.longrepr)]
  if late:
    terminalreporter.section(f'{len(late)} slow tests did not fit into the minutes')
    for test_id in late:
      terminalreporter.line(test_id)

"""Packing: every item once, no row too full, and each where it fits best."""

import numpy as np
import pytest

from instructretro_jax.examples.packing import best_fit


def loop_best_fit(lengths, capacity):
  rows = []
  for number, length in enumerate(lengths):
    room = [capacity - sum(lengths[n] for n in row) for row in rows]
    fitting = [(left, n) for n, left in enumerate(room) if left >= length]
    if fitting:
      rows[min(fitting)[1]].append(number)
    else:
      rows.append([number])
  return rows


@pytest.mark.parametrize('seed', range(5))
def test_rows_are_those_of_the_loop(seed):
  lengths = np.random.default_rng(seed).integers(1, 65, 150).tolist()
  rows = best_fit(lengths, 64)
  assert rows == loop_best_fit(lengths, 64)
  assert sorted(n for row in rows for n in row) == list(range(150))
  assert all(sum(lengths[n] for n in row) <= 64 for row in rows)


def test_little_room_is_left():
  lengths = np.random.default_rng(0).integers(1, 400, 5000).tolist()
  assert sum(lengths) / (len(best_fit(lengths, 1024)) * 1024) > 0.98


def test_an_item_that_fits_nowhere_is_an_error():
  assert best_fit([], 4) == [] and best_fit([4, 4], 4) == [[0], [1]]
  for length in (5, 0):
    with pytest.raises(ValueError, match=f'item 1 has the length {length}'):
      best_fit([2, length], 4)

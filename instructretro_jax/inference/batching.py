"""Which requests are decoded together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple


class Batch(NamedTuple):
  """Places of requests, and with how many rows they are decoded."""

  places: list[int]
  num_rows: int


def batches(
  shapes: Sequence[Hashable], fit: Callable[[list[int]], bool], batch_size: int
) -> list[Batch]:
  """Batches of requests of one shape, by the first place that each has.

  Args:
    fit: whether requests, by their places, can be decoded together.
  """
  groups: dict[Hashable, list[list[int]]] = {}
  for place, shape in enumerate(shapes):
    members = groups.setdefault(shape, [[]])
    together = [*members[-1], place]
    if len(together) == 1 or (len(together) <= batch_size and fit(together)):
      members[-1] = together
    else:
      members.append([place])
  # one size of batches for many requests, few sizes for few: each is compiled
  rows = lambda members, one: batch_size if len(members) > 1 else power_of_2(len(one))
  found = [Batch(one, rows(members, one)) for members in groups.values() for one in members]
  return sorted(found)


def check_batch_size(batch_size: int) -> None:
  """Raises ValueError for a size that holds no request."""
  if batch_size < 1:
    raise ValueError(f'batch_size={batch_size}: decode at least one row at a time')


def power_of_2(count: int) -> int:
  """The next power of two, so that few sizes are compiled."""
  return 1 << (count - 1).bit_length()


def bucket(count: int) -> int:
  """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: at most half as much again."""
  power = power_of_2(count)
  return power * 3 // 4 if power >= 4 and count <= power * 3 // 4 else power

"""Packing: which items share a row."""

from __future__ import annotations

import bisect
from collections.abc import Sequence


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
  """Numbers of the items in each row, in the order in which they were put there.

  Items are taken in order, and each goes where the least room is left that is enough, so equal
  lengths give equal rows. Raises ValueError for an item that no row has room for.
  """
  rows: list[list[int]] = []
  room: list[tuple[int, int]] = []  # (tokens left, row), in order
  for number, length in enumerate(lengths):
    if not 0 < length <= capacity:
      raise ValueError(f'item {number} has the length {length}, and a row {capacity}')
    place = bisect.bisect_left(room, (length, -1))
    if place == len(room):
      left, row = capacity, len(rows)
      rows.append([])
    else:
      left, row = room.pop(place)
    rows[row].append(number)
    if left > length:
      bisect.insort(room, (left - length, row))
  return rows

"""Gates that are open for some rows and closed for others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

RANDOM = 'random'  # in place of a number: 0 or 1 for each row
_PURPOSE = 1 << 63  # keeps these draws apart from those of the order of examples


def random_gates(seed: int, positions: np.ndarray) -> np.ndarray:
  """0 or 1 in float32, as likely as each other, for the examples at these positions."""
  bits = [np.random.Philox(key=[seed, _PURPOSE], counter=int(p)).random_raw() for p in positions]
  return np.array([bit >> 63 for bit in bits], np.float32)


def with_random_gates(
  batches: Iterable[dict[str, np.ndarray]],
  *,
  seed: int,
  start: int,
  batch_size: int,
  rows: np.ndarray,
) -> Iterator[dict[str, np.ndarray]]:
  """Batches with the `gate` of each of their rows, [B].

  Args:
    start: position of the first batch's first row in the stream of examples.
    batch_size: of the whole batch, on all processes.
    rows: those of each batch that this process has.
  """
  for n, batch in enumerate(batches):
    yield batch | {'gate': random_gates(seed, start + n * batch_size + rows)}

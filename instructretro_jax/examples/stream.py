"""Batches in the order of a stream of examples, read ahead by a thread."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from instructretro_jax.examples.sequences import ExampleSource
from instructretro_jax.pipeline import manifest

_BLOCK = 16  # examples that are read at once, at least
_AHEAD = 2  # blocks that are read before they are asked for


def batches(
  source: ExampleSource,
  *,
  seed: int,
  start: int,
  stop: int,
  batch_size: int,
  rows: np.ndarray | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """Batches of the examples at positions `start` to `stop` of the stream; a rest is left out.

  Args:
    seed: decides, with the position alone, which example comes when.
    batch_size: of the whole batch, on all processes.
    rows: those that this process reads of each batch; all if not given.

  Raises StageError if the source has no example, or not those up to `stop`, before it reads any.
  """
  if not len(source):
    raise manifest.StageError('there is no example to train on')
  if stop > start:
    source.ids(seed, np.array([start, stop - 1]))
  rows = np.arange(batch_size) if rows is None else rows
  num_batches, per_block = (stop - start) // batch_size, max(1, _BLOCK // len(rows))

  def read(first: int) -> list[dict[str, np.ndarray]]:
    numbers = np.arange(first, min(first + per_block, num_batches))
    positions = (start + numbers[:, None] * batch_size + rows).reshape(-1)
    block = source.examples(source.ids(seed, positions))
    cut = lambda n: slice(n * len(rows), (n + 1) * len(rows))
    return [{name: x[cut(n)] for name, x in block.items()} for n in range(len(numbers))]

  with ThreadPoolExecutor(1, thread_name_prefix='examples') as reader:
    begun: collections.deque[Future] = collections.deque()
    try:
      for first in range(0, num_batches, per_block):
        begun.append(reader.submit(read, first))
        if len(begun) > _AHEAD:
          yield from begun.popleft().result()
      while begun:
        yield from begun.popleft().result()
    finally:
      for future in begun:
        future.cancel()

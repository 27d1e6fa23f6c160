"""Held-out sequences with the neighbours of each chunk, with none, and with random ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from instructretro_jax.examples.tasks import LanguageModel
from instructretro_jax.retrieval.neighbours import random_neighbours
from instructretro_jax.text.chunks import ChunkStore

Arrays = dict[str, np.ndarray]

_ARRAYS = ('tokens', 'targets', 'loss_mask', 'segments')
_NEIGHBOURS = ('neighbours', 'neighbour_mask')


def heldout_batches(
  task: LanguageModel, root: Path, num_sequences: int, seed: int
) -> dict[str, Arrays]:
  """Sequences spread evenly over the held-out split, by kind of their neighbours.

  The kinds are 'own', 'off' and 'random'; 'off' alone if the task names no neighbour table. The
  last two of them share all but the neighbours with the first.

  Args:
    num_sequences: at most.
    seed: of the random neighbours.
  """
  source = task.sequences(root, 'heldout')
  count = min(num_sequences, len(source))
  own = source.examples(np.linspace(0, len(source) - 1, count).astype(np.int64))
  if task.neighbours is None:
    return {'off': own}
  database = ChunkStore(root / task.chunks, 'train')
  drawn = random_neighbours(own['chunk_ids'], task.num_neighbours, len(database), seed)
  others = source.neighbours(np.where(own['chunk_ids'][..., None] >= 0, drawn, -1))
  return {'own': own, 'off': own, 'random': {**own, **others}}


def parts(
  arrays: Arrays, batch_size: int, is_open: bool, rows: np.ndarray | None = None
) -> Iterator[Arrays]:
  """What a model reads of sequences, in batches of one shape.

  The last is filled up with sequences that have no target.

  Args:
    is_open: whether it reads neighbours.
    rows: those that this process reads of each batch; all if not given.
  """
  total, names = len(arrays['tokens']), _ARRAYS + (_NEIGHBOURS if is_open else ())
  rows = np.arange(batch_size) if rows is None else rows
  for start in range(0, total, batch_size):
    places = start + rows
    part = {name: arrays[name][np.minimum(places, total - 1)] for name in names}
    part['loss_mask'] = part['loss_mask'] * (places < total)[:, None].astype(np.float32)
    yield part

"""Held-out sequences with the neighbours of each chunk, with none, and with random ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from instructretro_jax.examples.tasks import LanguageModel
from instructretro_jax.retrieval.neighbours import random_neighbours
from instructretro_jax.text.chunks import ChunkStore

Arrays = dict[str, np.ndarray]


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

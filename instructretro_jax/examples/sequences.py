"""Examples by number: the order in which they come, and sequences joined with their neighbours.

A source answers `examples(ids)` for any example numbers; which number comes when is a function of
seed and position alone (`ids`). Nothing else decides the order of training.
"""

from __future__ import annotations

import functools
from typing import Protocol

import numpy as np

from instructretro_jax.text.chunks import ChunkStore

IGNORED = 0  # segment of padding


class ExampleSource(Protocol):
  """Examples by number; every array of an example has a fixed shape."""

  def __len__(self) -> int: ...

  def ids(self, seed: int, positions: np.ndarray) -> np.ndarray:
    """Example numbers at these positions of an endless stream."""

  def examples(self, ids_B: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays whose first axis goes with `ids_B`."""


class NeighbourIds(Protocol):
  """The neighbour table: ids of the chunks nearest to a chunk."""

  def ids(self, chunks: np.ndarray, k: int) -> np.ndarray:
    """Ids [..., k] of the nearest chunks, -1 where there are fewer."""


def example_ids(seed: int, num_examples: int, positions: np.ndarray, stream: int = 0) -> np.ndarray:
  """Example numbers at these positions of an endless stream of shuffled epochs.

  Args:
    stream: number of the stream; several of one seed have orders of their own.
  """
  epochs, places = np.divmod(positions, num_examples)
  ids = np.empty(len(positions), np.int64)
  for epoch in np.unique(epochs):
    here = epochs == epoch
    ids[here] = _epoch(seed, stream, int(epoch), num_examples)[places[here]]
  return ids


@functools.lru_cache(maxsize=16)  # a mixture reads as many streams at once
def _epoch(seed: int, stream: int, epoch: int, num_examples: int) -> np.ndarray:
  generator = np.random.Generator(np.random.Philox(key=[seed, epoch + (stream << 32)]))
  return generator.permutation(num_examples)


class Sequences:
  """Runs of N whole chunks in the order of the store, with the neighbours of each chunk.

  Arrays of an example:
    tokens, targets [L]: the target of a token is the next one of the same document.
    loss_mask [L]: 1 where there is a target.
    segments [L]: number of the document within the sequence, from 1; 0 on padding.
    chunk_ids [N]: ids in the store, -1 past its end.
    neighbours, neighbour_mask [N, K, R]: only with a neighbour table.

  Args:
    store: the split to read.
    database: the store that neighbour ids refer to.
    table: None leaves the neighbours out.
  """

  def __init__(
    self,
    store: ChunkStore,
    seq_len: int,
    pad_id: int,
    database: ChunkStore | None = None,
    table: NeighbourIds | None = None,
    num_neighbours: int = 2,
  ):
    if seq_len % store.chunk_len:
      raise ValueError(f'seq_len {seq_len} is no multiple of the chunk length {store.chunk_len}')
    self._store, self._database, self._table = store, database, table
    self._chunks_per_sequence = seq_len // store.chunk_len
    self._pad_id, self._num_neighbours = pad_id, num_neighbours

  def __len__(self) -> int:
    return -(-len(self._store) // self._chunks_per_sequence)

  def ids(self, seed: int, positions: np.ndarray) -> np.ndarray:
    """Sequences at these positions of an endless stream."""
    return example_ids(seed, len(self), positions)

  def examples(self, ids_B: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of these sequences; see the class."""
    store, N, C = self._store, self._chunks_per_sequence, self._store.chunk_len
    # one chunk more than the sequence has: its first token is the last target
    chunk_ids = np.asarray(ids_B)[:, None] * N + np.arange(N + 1)
    exists = chunk_ids < len(store)
    rows = np.where(exists, chunk_ids, 0)
    tokens = store.tokens[rows].astype(np.int32)  # [B, N + 1, C]
    length = np.where(exists, store.length[rows], 0)
    real = np.arange(C) < length[..., None]
    document = np.where(exists, store.documents(rows), -1)
    segment = 1 + np.cumsum(np.diff(document, axis=1, prepend=document[:, :1]) != 0, axis=1)
    segments = np.where(real, segment[..., None], IGNORED)
    flat = lambda x: x.reshape(len(rows), (N + 1) * C)
    tokens, segments = flat(np.where(real, tokens, self._pad_id)), flat(segments)
    L = N * C
    same = (segments[:, :L] == segments[:, 1 : L + 1]) & (segments[:, :L] != IGNORED)
    batch = {
      'tokens': tokens[:, :L],
      'targets': np.where(same, tokens[:, 1 : L + 1], self._pad_id),
      'loss_mask': same.astype(np.float32),
      'segments': segments[:, :L].astype(np.int32),
      'chunk_ids': np.where(exists, chunk_ids, -1)[:, :N].astype(np.int64),
    }
    if self._table is not None:
      ids = np.where(exists[:, :N, None], self._table.ids(rows[:, :N], self._num_neighbours), -1)
      batch |= self.neighbours(ids)
    return batch

  def neighbours(self, ids_BNK: np.ndarray) -> dict[str, np.ndarray]:
    """Tokens and mask of given neighbours, e.g. of random ones; -1 is no neighbour."""
    tokens, mask = self._database.neighbour_tokens(ids_BNK, self._pad_id)
    return {'neighbours': tokens, 'neighbour_mask': mask}

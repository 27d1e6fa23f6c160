"""The neighbour table, the filter against leakage, random neighbours, and what a table offers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from instructretro_jax.pipeline.array_store import StoredArray
from instructretro_jax.retrieval.overlap import copy_rule, shared_run
from instructretro_jax.text.chunks import ChunkStore

_OVERLAP_SAMPLE = 5000  # chunks
_SEED_OF_CONTROL = 0


class NeighbourTable:
  """Saved neighbours of one split, best first."""

  def __init__(self, folder: Path, split: str):
    self._ids = StoredArray(folder, f'{split}-neighbours')
    self._scores = StoredArray(folder, f'{split}-scores')

  def __len__(self) -> int:
    return len(self._ids)

  @property
  def num_saved(self) -> int:
    """Neighbours that are stored for each chunk."""
    return self._ids.shape[1]

  def ids(self, chunks: np.ndarray, k: int) -> np.ndarray:
    """Database ids of the first k neighbours, [..., k] int64; -1 where there are fewer."""
    self._check(k)
    return self._ids[chunks][..., :k].astype(np.int64)

  def scores(self, chunks: np.ndarray, k: int) -> np.ndarray:
    """Inner products with the query, [..., k] float32; -inf where there is no neighbour."""
    self._check(k)
    return self._scores[chunks][..., :k]

  def _check(self, k: int) -> None:
    if k > self.num_saved:
      raise ValueError(f'k={k} neighbours asked of a table that holds {self.num_saved}')


def drop_own(
  ids_QK: np.ndarray, scores_QK: np.ndarray, owner_M: np.ndarray, own_Q: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Keeps the first k hits of other owners than the query's; -1 and -inf after them.

  Args:
    owner_M: the document (or group) of each chunk of the database.
    own_Q: that of each query, -1 if the database does not hold it.

  Returns: ids and scores, [Q, k], and the number of hits dropped, [Q].
  """
  is_own_QK = (ids_QK >= 0) & (owner_M[ids_QK] == own_Q[:, None])
  keep_QK = (ids_QK >= 0) & ~is_own_QK
  order = np.argsort(~keep_QK, axis=1, kind='stable')[:, :k]
  kept = np.take_along_axis(keep_QK, order, axis=1)
  ids = np.where(kept, np.take_along_axis(ids_QK, order, axis=1), -1)
  scores = np.where(kept, np.take_along_axis(scores_QK, order, axis=1), np.float32(-np.inf))
  return ids, scores, is_own_QK.sum(axis=1, dtype=np.int32)


def random_neighbours(chunk_ids: np.ndarray, k: int, num_chunks: int, seed: int) -> np.ndarray:
  """Database ids [..., k] drawn from (seed, chunk id) alone: the control for real neighbours.

  A chunk id of -1, no chunk, has no neighbours: -1.
  """
  chunk_ids = np.asarray(chunk_ids, np.int64)
  with np.errstate(over='ignore'):  # arithmetic modulo 2^64
    stream = _mix(_mix(np.asarray(seed, np.uint64)) + chunk_ids.astype(np.uint64))
    draws = _mix(stream[..., None] + np.arange(k, dtype=np.uint64))
  ids = (draws % np.uint64(num_chunks)).astype(np.int64)
  return np.where(chunk_ids[..., None] >= 0, ids, -1)


def _mix(x: np.ndarray) -> np.ndarray:
  """One step of splitmix64 (Steele et al. 2014): a bijection that looks random."""
  x = x + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def table_statistics(
  table: NeighbourTable, store: ChunkStore, database: ChunkStore
) -> dict[str, Any]:
  """How full a table is, and how much text two neighbours share with what they serve.

  Overlap is measured on a bounded, evenly spaced sample of the chunks n that have a next one in
  their document: the longest run either neighbour shares with chunk n and with chunk n + 1, and
  the copy rule on chunk n + 1; the same for random neighbours.
  """
  num_neighbours = min(2, table.num_saved)
  everything = slice(0, len(table))
  ids, scores = table.ids(everything, table.num_saved), table.scores(everything, table.num_saved)
  statistics: dict[str, Any] = {
    'share_with_2': _mean(ids[:, num_neighbours - 1] >= 0),
    'share_with_all': _mean(ids[:, -1] >= 0),
    'mean_score_of_2': _mean(scores[:, :num_neighbours][ids[:, :num_neighbours] >= 0]),
  }
  chunks = np.flatnonzero(store.document[:-1] == store.document[1:])
  places = np.linspace(0, len(chunks) - 1, min(_OVERLAP_SAMPLE, len(chunks)))
  sample = chunks[places.astype(np.int64)]
  sources = {
    'neighbours': ids[sample, :num_neighbours],
    'random': random_neighbours(sample, num_neighbours, len(database), _SEED_OF_CONTROL),
  }
  for name, source in sources.items():
    statistics[name] = _overlap(store, sample, *database.neighbour_tokens(source, pad_id=0))
  return statistics


def _overlap(
  store: ChunkStore, chunks: np.ndarray, tokens_MKR: np.ndarray, mask_MKR: np.ndarray
) -> dict[str, Any]:
  C = store.chunk_len
  pairs = np.stack([chunks, chunks + 1], axis=1)
  text_MT = store.tokens[pairs].astype(np.int32).reshape(len(chunks), 2 * C)
  mask_MT = (np.arange(C) < store.length[pairs][..., None]).reshape(len(chunks), 2 * C)
  statistics: dict[str, Any] = {'sampled_chunks': len(chunks)}
  for name, part in (('chunk', slice(0, C)), ('next_chunk', slice(C, 2 * C))):
    run_M = shared_run(text_MT[:, part], mask_MT[:, part], tokens_MKR, mask_MKR)
    shares = {f'share_{n}_or_more': _mean(run_M >= n) for n in (8, 16, 32)}
    statistics[f'run_with_{name}'] = {'mean': _mean(run_M), **shares}
  rule = copy_rule(text_MT, mask_MT, tokens_MKR, mask_MKR, first=C)
  rounded = {name: round(share, 4) for name, share in dataclasses.asdict(rule).items()}
  return {**statistics, 'copy_rule': rounded}


def _mean(values: np.ndarray) -> float:
  return round(float(np.mean(values, dtype=np.float64)), 4) if len(values) else 0.0

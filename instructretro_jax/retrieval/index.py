"""Nearest vectors by inner product: the interface, the exact answer, and the union of shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from instructretro_jax.pipeline.local_copy import local
from instructretro_jax.pipeline.progress import Bar

_VECTORS_FILE = 'vectors.npy'
_SCORES_PER_BLOCK = 1 << 24
_PAIRS_PER_BLOCK = 1 << 15
# Sums of S products differ by about this much with the order in which a matrix product adds them.
_ROUNDING = 1e-5


class Searches(Protocol):
  """Finds the database vectors with the largest inner products."""

  def search(self, queries_QS: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each query, best first, equal scores by id.

    Returns: ids_QK int64 and scores_QK float32; -1 and -inf where there are fewer than k.
    """
    ...


class Index(Searches, Protocol):
  """What is built of vectors, saved and loaded."""

  @classmethod
  def build(cls, vectors_MS: np.ndarray) -> Self:
    """An index whose ids are the rows of the vectors."""

  def save(self, folder: Path) -> None:
    """Writes the index to a new folder, which may be moved or copied afterwards."""

  @classmethod
  def load(cls, folder: Path) -> Self:
    """Reads what `save` wrote."""


class ExactIndex:
  """Compares with every vector. What it returns does not depend on how the work is cut."""

  def __init__(self, vectors_MS: np.ndarray):
    self._vectors_MS = vectors_MS

  @classmethod
  def build(cls, vectors_MS: np.ndarray) -> ExactIndex:
    """Keeps the vectors as they are."""
    return cls(np.ascontiguousarray(vectors_MS, np.float32))

  def search(
    self,
    queries_QS: np.ndarray,
    k: int,
    owner_M: np.ndarray | None = None,
    own_Q: np.ndarray | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """As Index.search; every inner product is formed.

    Args:
      owner_M, own_Q: given both, a query does not find the vectors that its own owner has.
    """
    queries_QS = np.ascontiguousarray(queries_QS, np.float32)
    M, Q = len(self._vectors_MS), len(queries_QS)
    ids_QK, scores_QK = np.full((Q, k), -1, np.int64), np.full((Q, k), -np.inf, np.float32)
    if not min(M, Q, k):
      return ids_QK, scores_QK
    step = max(1, _SCORES_PER_BLOCK // M)
    for start in Bar(range(0, Q, step), desc='exact search', disable=step >= Q, leave=False):
      block = slice(start, start + step)
      scores_QM = queries_QS[block] @ self._vectors_MS.T
      if owner_M is not None and own_Q is not None:
        scores_QM[owner_M == own_Q[block, None]] = -np.inf
      ids_QK[block], scores_QK[block] = self._best(queries_QS[block], scores_QM, k)
    return ids_QK, scores_QK

  def _best(
    self, queries_QS: np.ndarray, scores_QM: np.ndarray, k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """The k best by sums formed in one order, of those that may be by the scores given."""
    M = scores_QM.shape[1]
    may_be_QM = np.isfinite(scores_QM)
    if k < M:
      least_Q = np.partition(scores_QM, M - k, axis=1)[:, M - k]
      may_be_QM &= scores_QM >= least_Q[:, None] - _ROUNDING
    rows, ids = np.nonzero(may_be_QM)
    scores = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _PAIRS_PER_BLOCK):
      pairs = slice(start, start + _PAIRS_PER_BLOCK)
      np.einsum(
        'ps,ps->p', queries_QS[rows[pairs]], self._vectors_MS[ids[pairs]], out=scores[pairs]
      )
    return best_of(rows, ids, scores, len(queries_QS), k)

  def save(self, folder: Path) -> None:
    """Writes the vectors to a new folder."""
    folder.mkdir(parents=True)
    np.save(folder / _VECTORS_FILE, self._vectors_MS)

  @classmethod
  def load(cls, folder: Path) -> ExactIndex:
    """The index that `save` wrote."""
    return cls(np.load(local(folder / _VECTORS_FILE), mmap_mode='r'))


def best_of(
  rows: np.ndarray, ids: np.ndarray, scores: np.ndarray, num_rows: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """Sorts candidates (row, id, score) into tables of the k best of each row, lower id first."""
  order = np.lexsort((ids, -scores, rows))
  rows, ids, scores = rows[order], ids[order], scores[order]
  rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
  kept = rank < k
  ids_QK = np.full((num_rows, k), -1, np.int64)
  scores_QK = np.full((num_rows, k), -np.inf, np.float32)
  ids_QK[rows[kept], rank[kept]] = ids[kept]
  scores_QK[rows[kept], rank[kept]] = scores[kept]
  return ids_QK, scores_QK


def search_shards(
  shards: Iterable[tuple[int, Searches]], queries_QS: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """Searches (first id, index) one after the other and keeps the k best of all."""
  ids_QK = np.full((len(queries_QS), k), -1, np.int64)
  scores_QK = np.full((len(queries_QS), k), -np.inf, np.float32)
  for first_id, index in shards:
    found, scores = index.search(queries_QS, k)
    found = np.where(found >= 0, found + first_id, -1)
    all_ids = np.concatenate([ids_QK, found], axis=1)
    rows, columns = np.nonzero(all_ids >= 0)
    all_scores = np.concatenate([scores_QK, scores], axis=1)[rows, columns]
    ids_QK, scores_QK = best_of(rows, all_ids[rows, columns], all_scores, len(queries_QS), k)
  return ids_QK, scores_QK


class ShardedIndex:
  """Indexes over consecutive ranges of ids, searched as one."""

  def __init__(self, shards: Sequence[tuple[int, Index]]):
    self._shards = shards

  def search(self, queries_QS: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """As Index.search, over all shards."""
    return search_shards(self._shards, queries_QS, k)

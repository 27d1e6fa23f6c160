"""Neighbours from other documents than the query's own, however much of the database that is."""

from __future__ import annotations

import numpy as np

from instructretro_jax.pipeline.array_store import StoredArray
from instructretro_jax.retrieval.index import ExactIndex, Searches, search_shards
from instructretro_jax.retrieval.neighbours import drop_own

_DEEPER = 8  # times as many hits are asked for again, where the own document filled them
_HITS_PER_BLOCK = 1 << 22
_ROWS_PER_PART = 1 << 16  # of the database, in memory at once


def search_others(
  index: Searches,
  vectors: StoredArray,
  queries_QS: np.ndarray,
  owner_M: np.ndarray,
  own_Q: np.ndarray,
  depth: int,
  k: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The k best of each query that are not its own.

  The index is searched `depth` deep; for queries that are left with fewer than k, eight times as
  deep; and for those still left, every vector of the database is compared, without their own.

  Args:
    vectors: of the database, in the order of the index.
    owner_M, own_Q: as of `drop_own`.

  Returns: ids_QK and scores_QK, and the hits of the first search that were dropped, [Q].
  """
  ids_QD, scores_QD = index.search(queries_QS, depth)
  ids_QK, scores_QK, dropped_Q = drop_own(ids_QD, scores_QD, owner_M, own_Q, k)
  deeper = min(_DEEPER * depth, len(vectors))
  left = np.flatnonzero((ids_QK[:, -1] < 0) & (dropped_Q > 0))
  if len(left) and deeper > depth:
    step = max(1, _HITS_PER_BLOCK // deeper)
    for start in range(0, len(left), step):
      rows = left[start : start + step]
      hits = index.search(queries_QS[rows], deeper)
      ids_QK[rows], scores_QK[rows], _ = drop_own(*hits, owner_M, own_Q[rows], k)
    left = left[ids_QK[left, -1] < 0]
  if len(left):
    ids_QK[left], scores_QK[left] = _compare_all(vectors, queries_QS[left], owner_M, own_Q[left], k)
  return ids_QK, scores_QK, dropped_Q


def _compare_all(
  vectors: StoredArray, queries_QS: np.ndarray, owner_M: np.ndarray, own_Q: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
  def part(low: int) -> tuple[int, _WithoutOwn]:
    rows = slice(low, min(low + _ROWS_PER_PART, len(vectors)))
    return low, _WithoutOwn(vectors[rows], owner_M[rows], own_Q)

  return search_shards(map(part, range(0, len(vectors), _ROWS_PER_PART)), queries_QS, k)


class _WithoutOwn:
  """A part of the database, each of whose queries leaves its own vectors out."""

  def __init__(self, vectors_MS: np.ndarray, owner_M: np.ndarray, own_Q: np.ndarray):
    self._index, self._owner_M, self._own_Q = ExactIndex.build(vectors_MS), owner_M, own_Q

  def search(self, queries_QS: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    return self._index.search(queries_QS, k, self._owner_M, self._own_Q)

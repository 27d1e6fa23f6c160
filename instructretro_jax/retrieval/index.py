"""Nearest vectors by inner product: the interface, the exact answer, and recall against it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

_BLOCK_BYTES = 1 << 28


class Index(Protocol):
  """Finds the database vectors with the largest inner product."""

  def search(self, queries_QS: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids_Qk (int64, best first, -1 where fewer than k) and scores_Qk."""

  def save(self, folder: Path) -> None:
    """Writes the index; the module's `load` reads it back, from wherever the folder is then."""


class ExactIndex:
  """Compares with every vector; equal scores go to the lower id."""

  def __init__(self, vectors_MS: np.ndarray):
    self._vectors_MS = np.ascontiguousarray(vectors_MS, np.float32)

  def search(self, queries_QS: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    num_vectors = len(self._vectors_MS)
    ids_Qk = np.full((len(queries_QS), k), -1, np.int64)
    scores_Qk = np.full((len(queries_QS), k), -np.inf, np.float32)
    found = min(k, num_vectors)
    block = max(1, _BLOCK_BYTES // (4 * max(1, num_vectors)))
    for start in range(0, len(queries_QS), block):
      scores_QM = queries_QS[start : start + block] @ self._vectors_MS.T
      if found < num_vectors:
        near = np.sort(np.argpartition(-scores_QM, found - 1, axis=1)[:, :found], axis=1)
      else:
        near = np.broadcast_to(np.arange(num_vectors), scores_QM.shape)
      near_scores = np.take_along_axis(scores_QM, near, axis=1)
      order = np.argsort(-near_scores, axis=1, kind='stable')
      rows = slice(start, start + len(scores_QM))
      ids_Qk[rows, :found] = np.take_along_axis(near, order, axis=1)
      scores_Qk[rows, :found] = np.take_along_axis(near_scores, order, axis=1)
    return ids_Qk, scores_Qk

  def save(self, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / 'vectors.npy', self._vectors_MS)

  @classmethod
  def load(cls, folder: Path) -> ExactIndex:
    return cls(np.load(folder / 'vectors.npy', mmap_mode='r'))


def recall_at(k: int, found_QK: np.ndarray, exact_QK: np.ndarray) -> float:
  """Share of the k truly nearest vectors that are among the first k found."""
  hits = (found_QK[:, :k, None] == exact_QK[:, None, :k]) & (exact_QK[:, None, :k] >= 0)
  return float(hits.any(axis=1).sum() / max(1, (exact_QK[:, :k] >= 0).sum()))

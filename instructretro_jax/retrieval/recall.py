"""How much of the exact answer an approximate search finds."""

from __future__ import annotations

import numpy as np


def recall_at(k: int, found_QK: np.ndarray, exact_QK: np.ndarray) -> float:
  """Share of the k truly nearest ids that are among the first k found; 1 if there are none.

  Ids below 0 stand for no hit. Raises ValueError if either table has fewer than k columns.
  """
  if min(found_QK.shape[1], exact_QK.shape[1]) < k:
    raise ValueError(f'recall@{k} of tables with {found_QK.shape[1]} and {exact_QK.shape[1]} hits')
  found, exact = found_QK[:, :k], exact_QK[:, :k]
  hits = (found[:, :, None] == exact[:, None, :]).any(axis=1) & (exact >= 0)
  wanted = (exact >= 0).sum()
  return float(hits.sum() / wanted) if wanted else 1.0

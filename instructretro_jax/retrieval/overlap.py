"""What retrieval can use: text that neighbours share with the chunk they serve."""

from __future__ import annotations

import numpy as np

_BLOCK_ROWS = 4096


def longest_common_run(
  a_MC: np.ndarray, b_MR: np.ndarray, a_mask_MC: np.ndarray, b_mask_MR: np.ndarray
) -> np.ndarray:
  """Length in tokens of the longest common substring of a_m and b_m, [M] int32."""
  runs_M = np.zeros(len(a_MC), np.int32)
  for start in range(0, len(a_MC), _BLOCK_ROWS):
    rows = slice(start, start + _BLOCK_ROWS)
    a, b, a_mask, b_mask = a_MC[rows], b_MR[rows], a_mask_MC[rows], b_mask_MR[rows]
    ending = np.zeros((len(a), b.shape[1] + 1), np.int16)  # run that ends at each token of b
    for i in range(a.shape[1]):
      same = (b == a[:, i : i + 1]) & b_mask & a_mask[:, i : i + 1]
      ending[:, 1:] = np.where(same, ending[:, :-1] + 1, 0)
      np.maximum(runs_M[rows], ending.max(axis=1), out=runs_M[rows])
  return runs_M


def shared_run(
  a_MC: np.ndarray, a_mask_MC: np.ndarray, neighbours_MKR: np.ndarray, mask_MKR: np.ndarray
) -> np.ndarray:
  """The longest run that a chunk shares with any one of its neighbours, [M]."""
  runs = [
    longest_common_run(a_MC, neighbours_MKR[:, k], a_mask_MC, mask_MKR[:, k])
    for k in range(neighbours_MKR.shape[1])
  ]
  return np.max(runs, axis=0)


def copyable(
  tokens_BL: np.ndarray,
  targets_BL: np.ndarray,
  neighbours_BNKR: np.ndarray,
  mask_BNKR: np.ndarray,
) -> np.ndarray:
  """Targets whose trigram (two tokens before, and itself) stands in the neighbours, [B, L] bool.

  The neighbours of chunk n serve the targets from position (n + 1) * C - 1 on, for C positions:
  the last token of chunk n already reads them.
  """
  B, L = tokens_BL.shape
  N = neighbours_BNKR.shape[1]
  C = L // N
  before_BL = np.concatenate([np.full((B, 1), -1), tokens_BL[:, :-1]], axis=1)
  found_BL = np.zeros((B, L), bool)
  for b in range(B):
    for n in range(N):
      served = slice((n + 1) * C - 1, min((n + 2) * C - 1, L))
      grams = set()
      for text, mask in zip(neighbours_BNKR[b, n], mask_BNKR[b, n]):
        real = text[mask].tolist()
        grams.update(zip(real, real[1:], real[2:]))
      asked = zip(
        before_BL[b, served].tolist(), tokens_BL[b, served].tolist(), targets_BL[b, served].tolist()
      )
      found_BL[b, served] = [gram in grams for gram in asked]
  return found_BL

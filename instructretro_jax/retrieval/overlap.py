"""What retrieval can use: text that neighbours share with the chunk they serve."""

from __future__ import annotations

import dataclasses

import numpy as np

_ROWS_PER_BLOCK = 512  # so that a block stays in the processor's cache
_NEVER_A, _NEVER_B = -1, -2  # stand for masked tokens; equal to nothing


def longest_common_run(
  a_MC: np.ndarray, b_MR: np.ndarray, mask_a_MC: np.ndarray, mask_b_MR: np.ndarray
) -> np.ndarray:
  """Tokens in the longest run that a_m and b_m have in common, [M] int32; masked tokens end it."""
  a_MC = np.where(mask_a_MC, a_MC, _NEVER_A)
  b_MR = np.where(mask_b_MR, b_MR, _NEVER_B)
  longest_M = np.zeros(len(a_MC), np.int32)
  for start in range(0, len(a_MC), _ROWS_PER_BLOCK):
    rows = slice(start, start + _ROWS_PER_BLOCK)
    ending = np.zeros((len(a_MC[rows]), b_MR.shape[1] + 1), _run_dtype(a_MC))
    best = ending.copy()
    for i in range(a_MC.shape[1]):
      ending = _extend(ending, a_MC[rows, i], b_MR[rows])
      np.maximum(best, ending, out=best)
    longest_M[rows] = best.max(axis=1)
  return longest_M


def shared_run(
  a_MC: np.ndarray, mask_a_MC: np.ndarray, neighbours_MKR: np.ndarray, mask_MKR: np.ndarray
) -> np.ndarray:
  """The longest run that a chunk shares with any one of its neighbours, [M] int32."""
  runs_KM = [
    longest_common_run(a_MC, neighbours_MKR[:, k], mask_a_MC, mask_MKR[:, k])
    for k in range(neighbours_MKR.shape[1])
  ]
  return np.max(runs_KM, axis=0)


def copyable(
  tokens_BL: np.ndarray,
  segments_BL: np.ndarray,
  neighbours_BNKR: np.ndarray,
  mask_BNKR: np.ndarray,
  chunk_len: int,
) -> np.ndarray:
  """Tokens that copying could predict, [B, L] bool.

  Such a token ends a trigram (the two tokens before, and itself) that stands in one of its
  neighbours. The neighbours of chunk n serve chunk n + 1, the tokens at (n + 1) * C to
  (n + 2) * C - 1, where that chunk continues the document of chunk n.

  Args:
    segments_BL: number of the document of each token, 0 on padding; one begins with a chunk.
    chunk_len: C; L is a multiple of it.
  """
  B, L = tokens_BL.shape
  if L % chunk_len or L // chunk_len != neighbours_BNKR.shape[1]:
    raise ValueError(
      f'{L} tokens are not {neighbours_BNKR.shape[1]} chunks of chunk_len={chunk_len}'
    )
  found_BL = np.zeros((B, L), bool)
  if chunk_len >= L:
    return found_BL
  served_C = np.arange(chunk_len, L)
  base = 1 + max(int(tokens_BL.max()), int(neighbours_BNKR.max()))
  asked_BL = _trigrams(tokens_BL, base)[:, chunk_len - 2 :]
  given_BNKR = _trigrams(neighbours_BNKR, base)
  whole_BNKR = mask_BNKR[..., :-2] & mask_BNKR[..., 1:-1] & mask_BNKR[..., 2:]
  given_BNKR = np.where(whole_BNKR, given_BNKR, -1)
  last_read = served_C // chunk_len * chunk_len - 1  # last token of the chunk before
  segment = segments_BL[:, served_C]
  one_document_BL = (segment != 0) & (segment == segments_BL[:, last_read])
  for b in range(B):
    asked_NC1 = asked_BL[b].reshape(-1, chunk_len, 1)
    given_N1J = given_BNKR[b, :-1].reshape(len(asked_NC1), 1, -1)
    found_BL[b, chunk_len:] = (asked_NC1 == given_N1J).any(axis=-1).reshape(-1)
  found_BL[:, chunk_len:] &= one_document_BL
  return found_BL


@dataclasses.dataclass(frozen=True)
class CopyRule:
  """How far copying goes without learning."""

  covers: float  # share of tokens for which the rule speaks
  right_when_it_speaks: float
  right_of_all: float


def copy_rule(
  text_MT: np.ndarray,
  mask_text_MT: np.ndarray,
  source_MKR: np.ndarray,
  mask_source_MKR: np.ndarray,
  first: int,
) -> CopyRule:
  """Scores a rule: find the longest suffix of the context in the source, say what followed it.

  The suffix has 2 tokens or more; of equally long ones the first in the source counts, and only
  places with a token after them. The tokens from `first` to the end of the text are predicted
  where they are real, each from all the text before it.
  """
  M, T = text_MT.shape
  R = source_MKR.shape[2]
  text_MT = np.where(mask_text_MT, text_MT, _NEVER_A)
  # One row of all neighbours, a masked token between them, so that no run crosses over.
  source_MKR = np.where(mask_source_MKR, source_MKR, _NEVER_B)
  source_MKR = np.pad(source_MKR, ((0, 0), (0, 0), (0, 1)), constant_values=_NEVER_B)
  source_MJ = source_MKR.reshape(M, source_MKR.shape[1] * (R + 1))
  num_tokens = num_spoken = num_right = 0
  for start in range(0, M, _ROWS_PER_BLOCK):
    text, source = (x[start : start + _ROWS_PER_BLOCK] for x in (text_MT, source_MJ))
    is_followed = source[:, 1:] != _NEVER_B
    ending = np.zeros((len(text), source.shape[1] + 1), _run_dtype(text))
    for t in range(T - 1):
      ending = _extend(ending, text[:, t], source)
      if t + 1 < first:
        continue
      usable = ending[:, 1:-1] * is_followed  # by place of the token that ends the run
      place = usable.argmax(axis=1)[:, None]
      spoken = np.take_along_axis(usable, place, axis=1)[:, 0] >= 2
      said = np.take_along_axis(source, place + 1, axis=1)[:, 0]
      wanted = text[:, t + 1]
      num_tokens += int((wanted != _NEVER_A).sum())
      num_spoken += int((spoken & (wanted != _NEVER_A)).sum())
      num_right += int((spoken & (said == wanted)).sum())
  share = lambda part, whole: part / whole if whole else 0.0
  return CopyRule(
    share(num_spoken, num_tokens), share(num_right, num_spoken), share(num_right, num_tokens)
  )


def _extend(ending_MR: np.ndarray, token_M: np.ndarray, b_MR: np.ndarray) -> np.ndarray:
  """Lengths of the runs that end with `token_M` at each place of b, from those one token before.

  Column r + 1 belongs to place r; column 0 is zero.
  """
  longer = np.zeros_like(ending_MR)
  np.multiply(
    ending_MR[:, :-1] + 1, b_MR == token_M[:, None], out=longer[:, 1:], dtype=longer.dtype
  )
  return longer


def _run_dtype(a_MC: np.ndarray) -> type:
  return np.uint8 if a_MC.shape[1] < 256 else np.int32


def _trigrams(tokens: np.ndarray, base: int) -> np.ndarray:
  """One number for every three tokens in a row, exact as long as base ** 3 < 2 ** 63."""
  x = tokens.astype(np.int64)
  return (x[..., :-2] * base + x[..., 1:-1]) * base + x[..., 2:]

"""Passages as neighbours: the windows of text that the encoder reads beside a dialogue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from instructretro_jax.pipeline import manifest
from instructretro_jax.questions.questions import Question
from instructretro_jax.text.tokens import Vocabulary


class Windows(NamedTuple):
  """K neighbours of every chunk of a text."""

  tokens_KR: np.ndarray
  mask_KR: np.ndarray  # True on real tokens


def token_windows(
  passages: Sequence[str], vocab: Vocabulary, count: int, window_len: int
) -> list[list[int]]:
  """Up to `count` pieces of up to `window_len` tokens: how each passage begins, then the rest."""
  tokens = [vocab.encode(passage) for passage in passages]
  pieces = [
    ids[start : start + window_len]
    for start in range(0, max(map(len, tokens), default=0), window_len)
    for ids in tokens
  ]
  return [list(piece) for piece in pieces if len(piece)][:count]


def as_windows(
  texts: Iterable[Sequence[int]], num_neighbours: int, window_len: int, pad_id: int
) -> Windows:
  """The first K texts, each its first R tokens, as neighbours; a missing one is masked."""
  tokens_KR = np.full((num_neighbours, window_len), pad_id, np.int32)
  mask_KR = np.zeros(tokens_KR.shape, bool)
  for row, mask, tokens in zip(tokens_KR, mask_KR, texts):
    ids = np.asarray(tokens[:window_len], np.int32)
    row[: len(ids)], mask[: len(ids)] = ids, True
  return Windows(tokens_KR, mask_KR)


def windows_of(
  passages: Sequence[str], vocab: Vocabulary, num_neighbours: int, window_len: int
) -> Windows:
  """`token_windows` as neighbours."""
  pieces = token_windows(passages, vocab, num_neighbours, window_len)
  return as_windows(pieces, num_neighbours, window_len, vocab.pad_id)


@dataclasses.dataclass(frozen=True)
class PassageNeighbours:
  """The neighbours of a question: what was retrieved for it, or else its own passages.

  Attributes:
    chunk_len: C, tokens; a window has 2 C.
    retrieved: texts by the id of their question, best first; None: its own passages.
  """

  vocab: Vocabulary
  chunk_len: int
  num_neighbours: int
  retrieved: Mapping[str, Sequence[str]] | None = None

  def of(self, question: Question) -> Windows:
    """Raises StageError if nothing was looked up for the question."""
    passages = question.shown_passages
    if self.retrieved is not None:
      if question.id not in self.retrieved:
        raise manifest.StageError(
          f'no passages were looked up for the question {question.id!r}: give the stage of the '
          'passages and this one the same questions'
        )
      passages = self.retrieved[question.id]
    return windows_of(passages, self.vocab, self.num_neighbours, 2 * self.chunk_len)


def read_passages(folder: Path, split: str) -> dict[str, list[str]]:
  """Retrieved texts by question id: rows {"id", "passages": [{"text"}]} of `{split}.jsonl`.

  Raises StageError if there is no such file.
  """
  path = folder / f'{split}.jsonl'
  if not path.exists():
    raise manifest.StageError(f'{path} does not exist: run the stage that writes it first')
  with path.open(encoding='utf-8') as file:
    rows = map(json.loads, file)
    return {row['id']: [passage['text'] for passage in row['passages']] for row in rows}

"""Passages as neighbours: the windows of text that the encoder reads beside a dialogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from instructretro_jax import manifest
from instructretro_jax.data.questions import Question
from instructretro_jax.data.vocabulary import Vocabulary


class Windows(NamedTuple):
  """K neighbours of every chunk of a text."""

  tokens_KR: np.ndarray
  mask_KR: np.ndarray  # True on real tokens


def windows_of_passages(
  passages: Sequence[str], vocab: Vocabulary, num_neighbours: int, window_len: int
) -> Windows:
  """The first K windows of R tokens of the passages, one after the other."""
  tokens = vocab.encode('\n\n'.join(passages))
  starts = range(0, num_neighbours * window_len, window_len)
  return _windows([tokens[start : start + window_len] for start in starts], vocab, window_len)


def windows_of_texts(
  texts: Sequence[str], vocab: Vocabulary, num_neighbours: int, window_len: int
) -> Windows:
  """The first R tokens of each of the first K texts; a missing one is masked."""
  rows = [vocab.encode(text)[:window_len] for text in texts[:num_neighbours]]
  return _windows(rows + [[]] * (num_neighbours - len(rows)), vocab, window_len)


def _windows(rows: Sequence[Sequence[int]], vocab: Vocabulary, window_len: int) -> Windows:
  tokens_KR = np.full((len(rows), window_len), vocab.pad_id, np.int32)
  mask_KR = np.zeros(tokens_KR.shape, bool)
  for k, row in enumerate(rows):
    tokens_KR[k, : len(row)], mask_KR[k, : len(row)] = row, True
  return Windows(tokens_KR, mask_KR)


@dataclasses.dataclass(frozen=True)
class PassageNeighbours:
  """The neighbours of a question: what was retrieved for it, or else its own passages.

  Attributes:
    chunk_len: C, tokens; a window has 2 C.
    retrieved: texts by the id of their question, best first; None: windows of its own passages.
  """

  vocab: Vocabulary
  chunk_len: int
  num_neighbours: int
  retrieved: Mapping[str, Sequence[str]] | None = None

  def of(self, question: Question) -> Windows:
    """Raises StageError if nothing was looked up for the question."""
    sizes = (self.vocab, self.num_neighbours, 2 * self.chunk_len)
    if self.retrieved is None:
      return windows_of_passages(question.passages, *sizes)
    if question.id not in self.retrieved:
      raise manifest.StageError(
        f'no passages were looked up for the question {question.id!r}: give the stage of the '
        'passages and this one the same questions'
      )
    return windows_of_texts(self.retrieved[question.id], *sizes)


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

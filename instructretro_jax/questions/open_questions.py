"""Questions without passages: the splits of Karpukhin et al. (2020) that a package brings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
import csv
import dataclasses
import io
import json
from typing import ClassVar
import zipfile

from instructretro_jax.questions.questions import Question
from instructretro_jax.text import packages
from instructretro_jax.text.documents import Problems

_JAR = 'pyserini/resources/jars/anserini-0.12.0-fatjar.jar'
_SPLITS = ('dev', 'test')


@dataclasses.dataclass(frozen=True)
class _Topics:
  """Questions of one file a split, a row each with the answers as Python writes a list."""

  split: str  # 'dev' or 'test'

  task: ClassVar[str]
  file_stem: ClassVar[str]

  def __post_init__(self):
    _check_split(self.split)

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields a question a row."""
    del problems  # the checksum of the package vouches for it
    return _questions(self.task, self.split, _python_rows(f'{self.file_stem}.{self.split}.txt'))


@dataclasses.dataclass(frozen=True)
class NaturalQuestions(_Topics):
  """Questions put to a search engine, short answers in Wikipedia: 8 757 of dev, 3 610 of test."""

  task: ClassVar[str] = 'nq'
  file_stem: ClassVar[str] = 'topics.dpr.nq'


@dataclasses.dataclass(frozen=True)
class TriviaQA(_Topics):
  """Questions of quizzes, each with the aliases of its answer: 8 837 of dev, 11 313 of test."""

  task: ClassVar[str] = 'triviaqa'
  file_stem: ClassVar[str] = 'topics.dpr.trivia'


@dataclasses.dataclass(frozen=True)
class SquadOpen:
  """The 10 570 questions of SQuAD 1.1's development set, without their paragraphs."""

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields a question a row."""
    del problems  # the checksum of the package vouches for it
    rows = map(json.loads, _text('topics.dpr.squad.test.txt').splitlines())
    return _questions('squad_open', 'test', ((row['question'], row['answer']) for row in rows))


def _questions(task: str, split: str, rows: Iterator[tuple[str, list[str]]]) -> Iterator[Question]:
  """Questions that ask for a short phrase; equal answers are given once, the first stays first."""
  for number, (question, answers) in enumerate(rows, 1):
    distinct = tuple(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))
    yield Question(f'{task}:{split}:{number}', question.strip(), (), distinct, task)


def _python_rows(name: str) -> Iterator[tuple[str, list[str]]]:
  """Rows of a question, a tab and the answers as a Python list, quoted as in CSV."""
  for question, answers in csv.reader(io.StringIO(_text(name), newline=''), delimiter='\t'):
    yield question, ast.literal_eval(answers)


def _text(name: str) -> str:
  """One file of the archive inside the package."""
  with packages.open_member(packages.PYSERINI, _JAR) as jar:
    whole = io.BytesIO(jar.read())  # seeking in a compressed file would inflate it twice
  with zipfile.ZipFile(whole) as archive:
    return archive.read(f'topics-and-qrels/{name}').decode()


def _check_split(split: str) -> None:
  if split not in _SPLITS:
    raise ValueError(f'the package has the splits {_SPLITS}, not {split!r}')

"""Rows of the user's files, one after the other, to questions: those of no use are reported."""

from __future__ import annotations

import abc
import collections
from collections.abc import Callable, Iterable, Iterator, Mapping
import itertools
from pathlib import Path
from typing import Any

from instructretro_jax.pipeline import manifest
from instructretro_jax.questions.fields import Row, Unusable, as_text
from instructretro_jax.questions.questions import Question
from instructretro_jax.text.documents import Problems
from instructretro_jax.text.files import Pattern, matching_files, present_files
from instructretro_jax.text.json_rows import json_rows as read_json_rows

_MOST_KEYS = 12  # shown of rows that are of no use

PlacedRow = tuple[str, str, Row]  # id, place, row


class JsonRows(abc.ABC):
  """Base of question sets that are JSON files of the user's: dataclasses with these two fields."""

  pattern: Pattern
  task: str

  def input_files(self) -> tuple[Path, ...]:
    """The files that the pattern matches."""
    return present_files(self.pattern)

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields a question a usable row. Raises StageError if no file or no row is of use."""
    found, place = json_rows(self.pattern, problems), f'{self.task}: {self.pattern}'
    return usable(found, self._question, problems, place, self._reads())

  @abc.abstractmethod
  def _question(self, row_id: str, row: Row) -> Question:
    """The question of a row. Raises Unusable if it is none."""

  @abc.abstractmethod
  def _reads(self) -> str:
    """What a row is to have, for the error."""


def usable(
  rows: Iterable[PlacedRow],
  parse: Callable[[str, Row], Question],
  problems: Problems,
  found_in: str,
  reads: str,
) -> Iterator[Question]:
  """Yields the question that `parse` makes of each (id, row); reports those it cannot use.

  Args:
    found_in: where the rows come from, and
    reads: what they are to have, for the error.

  Raises StageError if there is no row, or none of use.
  """
  num_rows, keys, first, is_usable = 0, {}, '', False
  for row_id, place, row in rows:
    num_rows += 1
    keys |= dict.fromkeys(list(row)[:_MOST_KEYS]) if len(keys) < _MOST_KEYS else {}
    try:
      question = parse(as_text(row_id, 'id'), row)
    except Unusable as error:
      problems.report(error.kind, place, error.detail)
      first = first or f'{place}: {error}'
      continue
    is_usable = True
    yield question
  if not num_rows:
    found = problems.summary(0) or 'the files are empty'
    raise manifest.StageError(f'{found_in}: there is no row to read: {found}')
  if not is_usable:
    names = ', '.join(str(key) for key in itertools.islice(keys, _MOST_KEYS))
    raise manifest.StageError(
      f'{found_in}: no row of {num_rows} could be used; their keys are {_printable(names)}; this '
      f'set reads {reads}; the first is {_printable(first)}'
    )


def json_rows(pattern: Pattern, problems: Problems) -> Iterator[PlacedRow]:
  """The rows of JSON files; the nested form of SQuAD gives a row a question, with its context.

  Files of one name are told apart by the folders that they are in.
  """
  for path, name in _distinct_names(matching_files(pattern)).items():
    for row_id, place, row in read_json_rows(path, problems):
      row_id = f'{name}:{row_id.rpartition(":")[2]}'
      nested = [] if 'question' in row else list(_squad_rows(row))
      if not nested:
        yield row_id, place, row
      for n, asked in enumerate(nested, 1):
        yield f'{row_id}:{n}', f'{place}, question {n}', asked


def _squad_rows(row: Row) -> Iterator[Row]:
  """Rows of a file {"data": [article]}, or of an article {"paragraphs": [{"context", "qas"}]}."""
  for article in _objects(row.get('data', [row])):
    for paragraph in _objects(article.get('paragraphs')):
      for asked in _objects(paragraph.get('qas')):
        yield {**asked, 'title': article.get('title'), 'context': paragraph.get('context')}


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
  return (one for one in value if isinstance(one, Mapping)) if isinstance(value, list) else iter(())


def _distinct_names(files: list[tuple[str, Path]]) -> dict[str, str]:
  """A name for each path: as given, and behind as many folders as tell it from its namesakes."""
  depths = {path: 0 for _, path in files}
  while True:
    named = {path: _behind_folders(name, path, depths[path]) for name, path in files}
    repeated = {name for name, n in collections.Counter(named.values()).items() if n > 1}
    deeper = [path for path, name in named.items() if name in repeated and name != str(path)]
    if not deeper:
      return {str(path): name for path, name in named.items()}
    for path in deeper:
      depths[path] += 1


def _behind_folders(name: str, path: Path, depth: int) -> str:
  num_parts = len(Path(name).parts) + depth
  return str(path) if num_parts >= len(path.parts) else '/'.join(path.parts[-num_parts:])


def _printable(text: str) -> str:
  """A text that any terminal takes."""
  return text.encode(errors='backslashreplace').decode()

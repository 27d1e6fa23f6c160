"""Rows of JSON files: a line each, or the entries of one array."""

from __future__ import annotations

from collections.abc import Iterator
import json
from pathlib import Path
import reprlib
from typing import IO, Any

from instructretro_jax.text.documents import Problems
from instructretro_jax.text.files import (
  BROKEN,
  Pattern,
  decoded,
  named_files,
  open_file,
  report_broken,
)

_LINE_PER_DOCUMENT = 4  # a line of JSON may be longer than its text: escapes, and other keys


def json_rows(pattern: Pattern, problems: Problems) -> Iterator[tuple[str, str, dict[str, Any]]]:
  """Yields (id, 'file:line', row) for each line that is a JSON object; blank lines are passed over.

  A file that begins with '[' is one array instead, read whole, and the number is that of the entry.
  Reports broken UTF-8, lines that are not JSON or not an object, lines above four times the limit
  of a document, files that cannot be opened, and the rest of a packed file that is damaged.
  """
  for name, path in named_files(pattern, problems):
    try:
      with open_file(path) as file:
        is_array = file.peek(64).lstrip(b'\xef\xbb\xbf \t\r\n').startswith(b'[')
        read = _array_entries if is_array else _line_entries
        for number, row in read(file, path, problems):
          place = f'{path}:{number}'
          if isinstance(row, dict):
            yield f'{name}:{number}', place, row
          else:
            found = f'a JSON object was expected, not {reprlib.repr(row)}'
            problems.report('wrong_type', place, found)
    except BROKEN as error:
      report_broken(path, error, problems)


def _line_entries(file: IO[bytes], path: Path, problems: Problems) -> Iterator[tuple[int, Any]]:
  for number, text in _lines(file, path, problems):
    try:
      yield number, json.loads(text)
    except (ValueError, RecursionError) as error:
      problems.report('not_json', f'{path}:{number}', f'not a line of JSON: {error}')


def _array_entries(file: IO[bytes], path: Path, problems: Problems) -> Iterator[tuple[int, Any]]:
  text = decoded(file.read(), str(path), problems)
  try:
    yield from enumerate(json.loads(text) if text is not None else (), 1)
  except (ValueError, RecursionError) as error:
    problems.report('not_json', str(path), f'not a JSON array: {error}')


def _lines(file: IO[bytes], path: Path, problems: Problems) -> Iterator[tuple[int, str]]:
  longest = _LINE_PER_DOCUMENT * problems.max_document_bytes
  number, offset = 0, 0
  while line := file.readline(longest + 1):
    number, start = number + 1, offset
    offset += len(line)
    if len(line) > longest:
      rest = line
      while rest and not rest.endswith(b'\n'):
        rest = file.readline(longest)
        offset += len(rest)
      problems.report_too_long(f'{path}:{number}', f'the line has {offset - start} bytes')
    elif line.strip():
      text = decoded(line, f'{path}:{number}', problems, start)
      if text is not None:
        yield number, text

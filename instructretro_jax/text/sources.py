"""Readers of the user's own text: JSON lines, text files, Parquet and TensorFlow Datasets."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import glob
import gzip
import json
from pathlib import Path
from typing import IO, Any
import zlib

import pyarrow as pa
import pyarrow.parquet as pq

from instructretro_jax.pipeline import manifest
from instructretro_jax.text.documents import Document, Problems

_BATCH_ROWS = 256  # rows of a Parquet file in memory at once
_LINE_PER_DOCUMENT = 4  # a line of JSON may be longer than its text: escapes, and other keys


@dataclasses.dataclass(frozen=True)
class JsonLines:
  """A document a line of the files that `pattern` matches; names ending in .gz are unpacked.

  `pattern` is a glob or several, `**` for any depth. The id is the value of `id_key`, or else the
  file's name below the fixed part of the pattern, and the line.
  """

  pattern: str | tuple[str, ...]
  text_key: str = 'text'
  id_key: str | None = None
  source: str = 'jsonl'

  def read(self, problems: Problems) -> Iterator[Document]:
    """Yields file by file. Raises StageError if the pattern matches no file."""
    for row_id, place, row in json_rows(self.pattern, problems):
      text = row.get(self.text_key)
      if not _is_text(text, self.text_key, place, problems):
        continue
      if self.id_key is not None:
        row_id = row.get(self.id_key)
        if row_id in (None, '') or not isinstance(row_id, (str, int)):
          problems.report('missing_id', place, f'{self.id_key!r} is no string or whole number')
          continue
      if problems.accepts(text, place):
        yield Document(str(row_id), text, self.source)


@dataclasses.dataclass(frozen=True)
class TextFiles:
  """A document a file, in UTF-8; the id is its name below the fixed part of the glob `pattern`."""

  pattern: str | tuple[str, ...]
  source: str = 'text'

  def read(self, problems: Problems) -> Iterator[Document]:
    """Yields in order of path. Raises StageError if the pattern matches no file."""
    for name, path in matching_files(self.pattern):
      num_bytes = path.stat().st_size
      if num_bytes > problems.max_document_bytes:  # not read: it may not fit into memory
        problems.report_too_long(str(path), f'the file has {num_bytes} bytes')
        continue
      text = decoded(path.read_bytes(), str(path), problems)
      if text is not None and problems.accepts(text, str(path)):
        yield Document(name, text, self.source)


@dataclasses.dataclass(frozen=True)
class Parquet:
  """A document a row of the Parquet files that `pattern` matches; the id is file and row."""

  pattern: str | tuple[str, ...]
  text_column: str = 'text'
  source: str = 'parquet'

  def read(self, problems: Problems) -> Iterator[Document]:
    """Yields file by file. Raises StageError if the pattern matches no file."""
    for name, path in matching_files(self.pattern):
      try:
        for row, value in enumerate(self._values(path, problems), 1):
          place = f'{path}:{row}'
          if value is None:
            problems.report('missing_text', place, f'{self.text_column!r} is null')
            continue
          text = decoded(value, place, problems)
          if text is not None and problems.accepts(text, place):
            yield Document(f'{name}:{row}', text, self.source)
      except (pa.ArrowInvalid, OSError) as error:
        problems.report('broken_file', str(path), f'not readable as Parquet from here on: {error}')

  def _values(self, path: Path, problems: Problems) -> Iterator[bytes | None]:
    with pq.ParquetFile(path) as file:
      schema = file.schema_arrow
      if self.text_column not in schema.names:
        found = f'no column {self.text_column!r}; there are {schema.names}'
        problems.report('missing_text', str(path), found)
        return
      kind = schema.field(self.text_column).type
      if kind not in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary()):
        problems.report('wrong_type', str(path), f'{self.text_column!r} holds {kind}, not strings')
        return
      for batch in file.iter_batches(_BATCH_ROWS, columns=[self.text_column]):
        # As bytes, so that one broken row does not cost its batch.
        yield from batch.column(0).cast(pa.large_binary()).to_pylist()


@dataclasses.dataclass(frozen=True)
class TfdsText:
  """A document an example of a dataset of TensorFlow Datasets, prepared in `data_dir` or by it."""

  dataset: str  # 'name', 'name/config' or 'name/config:1.0.0'
  split: str = 'train'
  text_key: str = 'text'
  data_dir: str | None = None

  def read(self, problems: Problems) -> Iterator[Document]:
    """Yields in the order of storage. Raises StageError if the dataset cannot be had."""
    for place, example in tfds_examples(self.dataset, self.split, self.data_dir):
      value = example.get(self.text_key)
      if not isinstance(value, bytes):
        found = f'{self.text_key!r} is no string; the keys are {sorted(example)}'
        problems.report('missing_text', place, found)
        continue
      text = decoded(value, place, problems)
      if text is not None and problems.accepts(text, place):
        yield Document(place, text, f'tfds:{self.dataset}')


def tfds_examples(
  dataset: str, split: str, data_dir: str | None
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (place, example) in the order of storage, strings as bytes.

  Raises StageError if the dataset cannot be had.
  """
  import tensorflow_datasets as tfds  # seconds to import, and only its sources need it

  config = tfds.ReadConfig(add_tfds_id=True, interleave_cycle_length=1)
  try:
    examples = tfds.as_numpy(tfds.load(dataset, split=split, data_dir=data_dir, read_config=config))
  except Exception as error:  # whatever a builder or a download raises
    raise manifest.StageError(
      f'{dataset!r}, split {split!r}, cannot be read: {error}. Prepare it with '
      '`tfds build` where the network is, and name the folder in data_dir.'
    ) from error
  for example in examples:
    yield f'tfds:{dataset}:{example["tfds_id"].decode()}', example


def matching_files(pattern: str | tuple[str, ...]) -> list[tuple[str, Path]]:
  """(name, path) of the files that a glob, or any of several, matches; each once, by path.

  The name is the path below the last folder before the first wildcard, so it does not change when
  the files move to another machine. Raises StageError if one pattern matches no file.
  """
  names: dict[Path, str] = {}
  for one in (pattern,) if isinstance(pattern, str) else pattern:
    whole = str(Path(one).expanduser())
    paths = [path for path in map(Path, glob.glob(whole, recursive=True)) if path.is_file()]
    if not paths:
      raise manifest.StageError(f'no file matches {one!r}: correct the path, or quote the wildcard')
    wild = next((n for n, part in enumerate(Path(whole).parts) if glob.has_magic(part)), None)
    base = Path(*Path(whole).parts[:wild]) if wild is not None else Path(whole).parent
    for path in paths:
      names.setdefault(path, path.relative_to(base).as_posix())
  return [(names[path], path) for path in sorted(names)]


def json_rows(
  pattern: str | tuple[str, ...], problems: Problems
) -> Iterator[tuple[str, str, dict[str, Any]]]:
  """Yields (id, 'file:line', row) for each line that is a JSON object; blank lines are passed over.

  A file that begins with '[' is one array instead, read whole, and the number is that of the entry.
  Reports broken UTF-8, lines that are not JSON or not an object, lines above four times the limit
  of a document, and the rest of a .gz file that is damaged.
  """
  for name, path in matching_files(pattern):
    try:
      with gzip.open(path) if path.suffix == '.gz' else path.open('rb') as file:
        is_array = file.peek(64).lstrip(b'\xef\xbb\xbf \t\r\n').startswith(b'[')
        read = _array_entries if is_array else _line_entries
        for number, row in read(file, path, problems):
          place = f'{path}:{number}'
          if isinstance(row, dict):
            yield f'{name}:{number}', place, row
          else:
            found = f'a JSON object was expected, not {json.dumps(row)[:40]!r}'
            problems.report('wrong_type', place, found)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
      problems.report('broken_file', str(path), f'not readable as gzip from here on: {error}')


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


def decoded(content: bytes, place: str, problems: Problems, offset: int = 0) -> str | None:
  """`content`, which starts at byte `offset` of the file, as text; None if it is not UTF-8."""
  try:
    return content.decode().removeprefix('\ufeff')
  except UnicodeDecodeError as error:
    found = f'byte 0x{content[error.start]:02x} at offset {offset + error.start} is not UTF-8'
    problems.report('broken_utf8', place, found)
    return None


def _is_text(value: Any, key: str, place: str, problems: Problems) -> bool:
  if isinstance(value, str):
    return True
  if value is None:
    problems.report('missing_text', place, f'the row has no {key!r}')
  else:
    problems.report('wrong_type', place, f'{key!r} is {type(value).__name__}, not a string')
  return False

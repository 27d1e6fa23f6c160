"""Readers of the user's own text: JSON lines, text files, Parquet, Arrow, TensorFlow Datasets."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
from typing import Any

from instructretro_jax.pipeline import manifest
from instructretro_jax.text import columns
from instructretro_jax.text.documents import Document, Problems
from instructretro_jax.text.files import (
  BROKEN,
  Pattern,
  decoded,
  named_files,
  open_file,
  report_broken,
)
from instructretro_jax.text.json_rows import json_rows


@dataclasses.dataclass(frozen=True)
class JsonLines:
  """A document a line of the files that `pattern` matches; names in .gz or .zst are unpacked.

  `pattern` is a glob or several, `**` for any depth. The id is the value of `id_key`, or else the
  file's name below the fixed part of the pattern, and the line.
  """

  pattern: Pattern
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
      if problems.accepts_unicode(str(row_id), place) and problems.accepts(text, place):
        yield Document(str(row_id), text, self.source)


@dataclasses.dataclass(frozen=True)
class TextFiles:
  """A document a file, in UTF-8; the id is its name below the fixed part of the glob `pattern`.

  Names that end in .gz or .zst are unpacked.
  """

  pattern: Pattern
  source: str = 'text'

  def read(self, problems: Problems) -> Iterator[Document]:
    """Yields in order of path. Raises StageError if the pattern matches no file."""
    longest = problems.max_document_bytes
    for name, path in named_files(self.pattern, problems):
      try:
        with open_file(path) as file:
          content = file.read(longest + 1)  # no more: it may not fit into memory
      except BROKEN as error:
        report_broken(path, error, problems)
        continue
      if len(content) > longest:
        problems.report_too_long(str(path), f'the file has {path.stat().st_size} bytes')
        continue
      text = decoded(content, str(path), problems)
      if text is not None and problems.accepts(text, str(path)):
        yield Document(name, text, self.source)


@dataclasses.dataclass(frozen=True)
class Parquet:
  """A document a row of the Parquet files that `pattern` matches; the id is file and row."""

  pattern: Pattern
  text_column: str = 'text'
  source: str = 'parquet'

  def read(self, problems: Problems) -> Iterator[Document]:
    """Yields file by file. Raises StageError if the pattern matches no file."""
    return _column(self.pattern, self.text_column, self.source, columns.parquet_batches, problems)


@dataclasses.dataclass(frozen=True)
class Arrow:
  """A document a row of Arrow files, as `datasets` saves them: `FOLDER/*.arrow`; id as Parquet."""

  pattern: Pattern
  text_column: str = 'text'
  source: str = 'arrow'

  def read(self, problems: Problems) -> Iterator[Document]:
    """Yields file by file. Raises StageError if the pattern matches no file."""
    return _column(self.pattern, self.text_column, self.source, columns.arrow_batches, problems)


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


def _column(
  pattern: Pattern,
  column: str,
  source: str,
  batches_of: columns.BatchesOf,
  problems: Problems,
) -> Iterator[Document]:
  """A document a row of one column of tables."""
  for name, path in named_files(pattern, problems):
    for row, value in enumerate(columns.texts(path, column, batches_of, problems), 1):
      place = f'{path}:{row}'
      if value is None:
        problems.report('missing_text', place, f'{column!r} is null')
        continue
      text = decoded(value, place, problems)
      if text is not None and problems.accepts(text, place):
        yield Document(f'{name}:{row}', text, source)


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


def _is_text(value: Any, key: str, place: str, problems: Problems) -> bool:
  if isinstance(value, str):
    return True
  if value is None:
    problems.report('missing_text', place, f'the row has no {key!r}')
  else:
    problems.report('wrong_type', place, f'{key!r} is {type(value).__name__}, not a string')
  return False

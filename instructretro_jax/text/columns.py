"""One column of strings of a table on disk, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from instructretro_jax.pipeline.paths import is_remote
from instructretro_jax.text.documents import Problems
from instructretro_jax.text.files import BROKEN, report_broken

_BATCH_ROWS = 256  # rows of a Parquet file in memory at once
_STRINGS = (
  pa.types.is_string,
  pa.types.is_large_string,
  pa.types.is_string_view,
  pa.types.is_binary,
  pa.types.is_large_binary,
  pa.types.is_binary_view,
)

# (file, column) -> the schema of the file, and batches that have the column among others
BatchesOf = Callable[[Path, str], tuple[pa.Schema, Iterator[pa.RecordBatch]]]


def parquet_batches(path: Path, column: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
  """The schema of a Parquet file, and batches of the column."""
  file = pq.ParquetFile(_opened(path))
  return file.schema_arrow, file.iter_batches(_BATCH_ROWS, columns=[column])


def _opened(path: Path) -> pa.NativeFile:
  return pa.PythonFile(path.open('rb'), 'r') if is_remote(path) else pa.OSFile(str(path))


def arrow_batches(path: Path, column: str) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
  """The schema of an Arrow file, in the format of streams or of files, and its batches.

  It is read, not mapped into memory: that of a file cut short would end the process.
  """
  file = _opened(path)
  try:
    reader = pa.ipc.open_stream(file)
    return reader.schema, iter(reader)
  except pa.ArrowInvalid:
    file.seek(0)
    opened = pa.ipc.open_file(file)
    return opened.schema, map(opened.get_batch, range(opened.num_record_batches))


def texts(
  path: Path, column: str, batches_of: BatchesOf, problems: Problems
) -> Iterator[bytes | None]:
  """The values of a column as bytes, so that one broken row does not cost its batch.

  Reports a file that is damaged, or has no such column of strings, and goes on with the next.
  """
  try:
    schema, batches = batches_of(path, column)
    if column not in schema.names:
      found = f'no column {column!r}; there are {schema.names}'
      problems.report('missing_text', str(path), found)
      return
    kind = schema.field(column).type
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not any(is_kind(plain) for is_kind in _STRINGS):
      problems.report('wrong_type', str(path), f'{column!r} holds {kind}, not strings')
      return
    for batch in batches:
      values = batch.column(column)
      values.validate(full=True)  # what a damaged file says of itself may point anywhere
      if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
      yield from values.cast(pa.large_binary()).to_pylist()
  except (pa.ArrowException, *BROKEN) as error:
    report_broken(path, error, problems)

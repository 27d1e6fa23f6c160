"""Where answers go, a JSON object a line: each is written as it comes, and a rerun goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import fcntl
import json
from pathlib import Path
import sys
from typing import IO, Any

from instructretro_jax.pipeline.growing import GrowingFiles
from instructretro_jax.pipeline.manifest import StageError

_KEY = 'request'  # under which a line says what it answers
_COPY_SECS = 30.0  # from one copy to a store to the next


class AnswerFile:
  """An output that is open, with the answers that an earlier run has left.

  Attributes:
    num_done: lines that are there.
    num_errors: of those that are there or were written.
  """

  def __init__(
    self,
    file: IO[bytes],
    digests: Sequence[str],
    num_done: int = 0,
    num_errors: int = 0,
    end: int | None = None,
    files: GrowingFiles | None = None,
  ):
    """Goes on at the byte `end` of a file, one of `files`; None: of what is no file."""
    self._file, self._digests, self._end, self._files = file, digests, end, files
    self.num_done, self.num_errors = num_done, num_errors

  def write(self, row: dict[str, Any]) -> None:
    """Writes the next line; a kill does not lose it. Raises OSError with the name of the file."""
    line = {**row, _KEY: self._digests[self.num_done]}
    left = content = json.dumps(line, ensure_ascii=False).encode() + b'\n'
    try:
      while left:
        left = left[self._file.write(left) :]
      self._file.flush()
    except OSError as error:
      if self._end is not None:
        self._file.truncate(self._end)  # whole lines alone
      error.filename = self._file.name
      raise
    if self._end is not None:
      self._end += len(content)
    self.num_done += 1
    self.num_errors += 'error' in row
    if self._files is not None:
      self._files.push(_COPY_SECS)


@contextlib.contextmanager
def open_answers(path: Path | None, digests: Sequence[str]) -> Iterator[AnswerFile]:
  """The output for requests with these digests; None or '-' is stdout.

  The folder is made if need be. A last line that a kill cut short is dropped. Raises StageError if
  the file cannot be written, is being written, or has answers to other requests.
  """
  if path is None or str(path) == '-':
    yield AnswerFile(sys.stdout.buffer, digests)
    return
  if path.is_dir():
    raise StageError(f'{path} is a folder: name a file in --out')
  with (
    contextlib.closing(GrowingFiles(path.parent, goes_on=(path.name,))) as files,
    # no buffer, which would be written again when the file is closed behind an error
    (files.here / path.name).open('ab', buffering=0) as file,
  ):
    here = files.here / path.name
    if not here.is_file():  # a device or a pipe has nothing to go on from
      yield AnswerFile(file, digests)
      return
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise StageError(f'{path} is being written by another run: wait for its end') from error
    num_done = num_errors = end = 0
    for line in here.read_bytes().splitlines(keepends=True):
      if not line.endswith(b'\n'):
        break
      row = _row(line, path, num_done + 1)
      if num_done == len(digests) or row.get(_KEY) != digests[num_done]:
        raise StageError(
          f'{path}, line {num_done + 1}: it answers another request than this run would make, or '
          'with other settings or another checkpoint: choose another --out, or remove the file'
        )
      num_done, num_errors, end = num_done + 1, num_errors + ('error' in row), end + len(line)
    file.truncate(end)
    yield AnswerFile(file, digests, num_done, num_errors, end, files)


def _row(line: bytes, path: Path, number: int) -> dict[str, Any]:
  try:
    row = json.loads(line)
  except (ValueError, RecursionError):
    row = None
  if not isinstance(row, dict):
    raise StageError(f'{path}, line {number}: no line of answers: choose another --out')
  return row

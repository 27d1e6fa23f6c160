"""The user's own files: found by a pattern, opened whatever packs them, decoded."""

from __future__ import annotations

from collections.abc import Iterator
import glob
import gzip
import io
from pathlib import Path
import re
from typing import IO
import zlib

import zstandard

from instructretro_jax.pipeline import manifest, paths
from instructretro_jax.text.documents import Problems

Pattern = str | tuple[str, ...]  # a glob or several, `**` for any depth

_ZSTD_WINDOW = 1 << 31  # bytes: dumps made with --long=31 need it
# what reading a damaged or forbidden file raises; gzip's own errors are OSErrors
BROKEN = (OSError, EOFError, zlib.error, zstandard.ZstdError)


def matching_files(pattern: Pattern) -> list[tuple[str, Path]]:
  """(name, path) of the files that a glob, or any of several, matches; each once, by path.

  The name is the path below the last folder before the first wildcard, so it does not change when
  the files move to another machine. What exists as it is spelt is taken as it is, though it may
  have brackets. Raises StageError if one pattern matches no file.
  """
  names: dict[Path, str] = {}
  for one in (pattern,) if isinstance(pattern, str) else pattern:
    whole = paths.to_path(one)
    base = _folder_spelt_out(whole)
    found = [whole] if whole.is_file() else _matches(base, whole)
    if not found:
      raise manifest.StageError(f'no file matches {one!r}: correct the path, or quote the wildcard')
    for path in found:
      names.setdefault(path, path.relative_to(base).as_posix())
  return [(names[path], path) for path in sorted(names)]


def present_files(pattern: Pattern) -> tuple[Path, ...]:
  """The files that a pattern matches now; none where `matching_files` raises."""
  try:
    return tuple(path for _, path in matching_files(pattern))
  except manifest.StageError:
    return ()


def _folder_spelt_out(whole: Path) -> Path:
  """The folder before the first part of a pattern that has to be matched."""
  base = [whole, *whole.parents][-1]
  for part in whole.parts[len(base.parts) : -1]:
    if glob.has_magic(part) and not (base / part).is_dir():
      break
    base /= part
  return base


def _matches(base: Path, whole: Path) -> list[Path]:
  rest = whole.relative_to(base)
  if paths.is_remote(whole):
    from fsspec.utils import glob_translate

    is_wanted = re.compile(glob_translate(str(rest))).fullmatch
    is_hidden = lambda name: '/.' in f'/{name}'  # as glob has it
    names = [name for name in paths.files_below(base) if not is_hidden(name)]
    return [base / name for name in names if is_wanted(name)]
  found = glob.glob(str(Path(glob.escape(str(base))) / rest), recursive=True)
  return [path for path in map(Path, found) if path.is_file()]


def named_files(pattern: Pattern, problems: Problems) -> Iterator[tuple[str, Path]]:
  """As `matching_files`, without those whose name is not UTF-8, which are reported."""
  for name, path in matching_files(pattern):
    if problems.accepts_unicode(name, str(path)):
      yield name, path


def open_file(path: Path) -> IO[bytes]:
  """A file open for reading, with `peek`; names that end in .gz or .zst are unpacked."""
  packing = path.suffix.lower()
  if packing == '.gz':
    return gzip.open(_opened(path) if paths.is_remote(path) else path)
  if packing == '.zst':
    reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(
      _opened(path), read_across_frames=True, closefd=True
    )
    return io.BufferedReader(reader)
  return _opened(path)


def _opened(path: Path) -> IO[bytes]:
  file = path.open('rb')
  return io.BufferedReader(file) if paths.is_remote(path) else file


def report_broken(path: Path, error: Exception, problems: Problems) -> None:
  """Records a file that could not be read (to its end)."""
  if isinstance(error, OSError) and error.strerror and error.filename is not None:
    problems.report('unreadable_file', str(path), error.strerror)
  else:
    problems.report('broken_file', str(path), f'not readable from here on: {error}')


def decoded(content: bytes, place: str, problems: Problems, offset: int = 0) -> str | None:
  """`content`, which starts at byte `offset` of the file, as text; None if it is not UTF-8."""
  try:
    return content.decode().removeprefix('\ufeff')
  except UnicodeDecodeError as error:
    found = f'byte 0x{content[error.start]:02x} at offset {offset + error.start} is not UTF-8'
    problems.report('broken_utf8', place, found)
    return None

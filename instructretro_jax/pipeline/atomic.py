"""Files and folders that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import errno
import os
from pathlib import Path
import secrets
import shutil
import tempfile

from instructretro_jax.pipeline import paths

WHOLE = '.whole'  # after the name of a folder of a store: an object that is written last
_SUFFIX = '.partial'


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
  """Where to write a file or a folder, which takes its name `path` if the block ends well.

  The name is one that no other process uses. What is written is on the disk before it takes its
  name, so a machine that loses power leaves no empty file. A block that fails leaves nothing; what
  a kill leaves is removed by `remove_partial`. The folder around it is made. What goes to a store
  is written to this machine first. Of a folder there, files appear one by one: see `is_whole`.

  Raises OSError that names `path`, also for a full disk that a library reports in its own way.
  """
  if paths.is_remote(path):
    with tempfile.TemporaryDirectory(prefix='instructretro_') as folder:
      yield Path(folder) / path.name
      upload(Path(folder) / path.name, path)
    return
  partial = _partial(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    yield partial
    _to_disk(partial)
    os.replace(partial, path)
  except BaseException as error:
    _remove(partial)
    if is_of_full_disk(error):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
    if isinstance(error, OSError) and str(error.filename).startswith(str(partial)):
      raise OSError(error.errno, error.strerror, str(path)) from error
    raise
  _to_disk(path.parent, and_below=False)


def is_whole(path: Path) -> bool:
  """Whether there is a file, or a folder that `atomic` has written to its end."""
  if not paths.is_remote(path):
    return path.exists()
  return path.with_name(f'{path.name}{WHOLE}').exists() or path.is_file()


def upload(source: Path, path: Path) -> None:
  """Copies a file, or a folder and then the object that says it is whole, to a store."""
  if source.is_file():
    paths.copy(source, path)
    return
  whole = path.with_name(f'{path.name}{WHOLE}')
  paths.remove(whole)
  for file in paths.files_below(source):
    paths.copy(source / file, path / file)
  paths.store(whole).pipe_file(paths.store_name(whole), b'')


def is_of_full_disk(error: BaseException) -> bool:
  """Whether a disk without room is what an error is about, whoever raised it."""
  return isinstance(error, Exception) and os.strerror(errno.ENOSPC) in str(error)


def check_place(path: Path) -> None:
  """Raises OSError if no file can be written at `path`: before work that is to end with one."""
  if paths.is_remote(path):
    trial = _partial(path)
    paths.store(path).pipe_file(paths.store_name(trial), b'')
    paths.remove(trial)
    return
  if path.is_dir():
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = _partial(path)
  try:
    partial.touch()
  except OSError as error:
    raise OSError(error.errno, error.strerror, str(path)) from error
  partial.unlink()


def remove_partial(folder: Path) -> None:
  """Removes what killed processes have left below a folder that no other process writes to."""
  if paths.is_remote(folder):
    return
  for partial in sorted(folder.rglob(f'*{_SUFFIX}')):
    _remove(partial)


def _partial(path: Path) -> Path:
  return path.with_name(f'{path.name}.{secrets.token_hex(4)}{_SUFFIX}')


def _remove(path: Path) -> None:
  if path.is_dir():
    shutil.rmtree(path, ignore_errors=True)
  else:
    with contextlib.suppress(OSError):  # a read-only disk says so even of what is not there
      path.unlink()


def _to_disk(path: Path, and_below: bool = True) -> None:
  """Waits until a file, or the entries of a folder, would survive a loss of power."""
  if and_below and path.is_dir():
    for name in path.iterdir():
      _to_disk(name)
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)

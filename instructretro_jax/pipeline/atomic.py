"""Files and folders that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import secrets
import shutil

_SUFFIX = '.partial'


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
  """Where to write a file or a folder, which takes its name `path` if the block ends well.

  The name is one that no other process uses. What is written is on the disk before it takes its
  name, so a machine that loses power leaves no empty file. A block that fails leaves nothing; what
  a kill leaves is removed by `remove_partial`. The folder around it is made.
  """
  partial = path.with_name(f'{path.name}.{secrets.token_hex(4)}{_SUFFIX}')
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    yield partial
    _to_disk(partial)
    os.replace(partial, path)
  except BaseException:
    _remove(partial)
    raise
  _to_disk(path.parent, and_below=False)


def remove_partial(folder: Path) -> None:
  """Removes what killed processes have left below a folder that no other process writes to."""
  for partial in sorted(folder.rglob(f'*{_SUFFIX}')):
    _remove(partial)


def _remove(path: Path) -> None:
  if path.is_dir():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


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

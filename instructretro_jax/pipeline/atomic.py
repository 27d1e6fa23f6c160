"""Files and folders that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import shutil

_SUFFIX = '.partial'


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
  """Where to write a file or a folder, which takes its name `path` if the block ends well.

  What an earlier, broken attempt has left is removed first; the folder around it is made.
  """
  partial = path.with_name(path.name + _SUFFIX)
  path.parent.mkdir(parents=True, exist_ok=True)
  if partial.is_dir():
    shutil.rmtree(partial)
  else:
    partial.unlink(missing_ok=True)
  yield partial
  os.replace(partial, path)

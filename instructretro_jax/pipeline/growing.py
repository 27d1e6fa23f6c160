"""Files that grow as they are written, which an object of a store cannot: logs, answers."""

from __future__ import annotations

from pathlib import Path
import tempfile
import time
from typing import Any

from instructretro_jax.pipeline import paths


class GrowingFiles:
  """A folder of this machine for them: the one asked for, or one that is copied to a store.

  Args:
    goes_on: names of files that are appended to, if they are there.

  Attributes:
    here: where to write.
  """

  def __init__(self, folder: Path, goes_on: tuple[str, ...] = ()):
    self._folder = folder
    self._copied: dict[str, list[Any]] = {}
    self._copied_at = time.monotonic()
    self._temporary = None
    self.here = folder
    if paths.is_remote(folder):
      self._temporary = tempfile.TemporaryDirectory(prefix='instructretro_')
      self.here = Path(self._temporary.name)
      for name in goes_on:
        if (folder / name).is_file():
          paths.copy(folder / name, self.here / name)
    else:
      paths.make_folder(folder)

  def push(self, secs: float = 0) -> None:
    """Copies to the store what has changed, each file whole, if that was last done `secs` ago."""
    if self._temporary is None or time.monotonic() - self._copied_at < secs:
      return
    self._copied_at = time.monotonic()
    for name in paths.files_below(self.here):
      version = paths.version_of(self.here / name)
      if self._copied.get(name) != version:
        paths.copy(self.here / name, self._folder / name)
        self._copied[name] = version

  def close(self) -> None:
    """As `push`; then what was for the store is gone from this machine."""
    self.push()
    if self._temporary is not None:
      self._temporary.cleanup()

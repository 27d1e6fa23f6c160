"""Where Orbax keeps the checkpoints of a folder, of this machine or of a store."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
import hashlib
from pathlib import Path

from etils import epath
import jax

from instructretro_jax.pipeline import paths
from instructretro_jax.pipeline.atomic import WHOLE, is_whole, upload
from instructretro_jax.pipeline.caches import cache_folder
from instructretro_jax.pipeline.local_copy import local
from instructretro_jax.pipeline.manifest import StageError

_COMMITTED = 'commit_success.txt'  # what Orbax writes last into a checkpoint on gs://


class Place:
  """The folder that Orbax is given for one of checkpoints: that itself, on this machine or gs://.

  Orbax does not write to s3://. There it gets a folder of this machine, of which each checkpoint is
  copied when it is on disk, then its mark; what was not copied to its end is not there. One process
  alone can do that. Orbax's own format is the same at every place.

  Raises StageError for s3:// and several processes.
  """

  def __init__(self, folder: Path):
    self._folder = paths.absolute(folder)
    self._is_copied = _is_copied(folder)
    self.for_orbax = epath.Path(str(self._folder))
    self._copying: Future[None] | None = None
    if not self._is_copied:
      return
    if jax.process_count() > 1:
      raise StageError(
        f'{folder}: Orbax does not write to s3://, and checkpoints of several processes cannot be '
        'gathered for it: give a --root on gs:// or a folder that all hosts see'
      )
    self._threads = ThreadPoolExecutor(max_workers=1)
    key = hashlib.sha256(str(folder).encode()).hexdigest()[:32]
    self._here = cache_folder() / 'checkpoints' / key
    self.for_orbax = epath.Path(self._here)
    paths.remove(self._here)  # of a run that was killed: what counts is in the store
    paths.make_folder(self._here)
    for step in complete_steps(self._folder):
      for name in paths.files_below(self._folder / str(step)):
        paths.copy(self._folder / str(step) / name, self._here / str(step) / name)

  def keep(self, wait_until_written: Callable[[], None]) -> None:
    """Begins to copy what Orbax is writing, and to delete what it has deleted."""
    if self._is_copied:
      self._copying = self._threads.submit(self._copy, wait_until_written)

  def wait(self) -> None:
    """Returns when all is copied. Raises what went wrong."""
    if self._copying is not None:
      copying, self._copying = self._copying, None
      copying.result()

  def close(self) -> None:
    """As `wait`; deletes what was of use to Orbax alone."""
    self.wait()
    if self._is_copied:
      self._threads.shutdown()
      paths.remove(self._here)

  def set_aside(self, step: int, target: Path) -> None:
    """Moves a checkpoint, which is then none of the folder's."""
    paths.remove(target)
    if self._is_copied:
      paths.remove(self._here / str(step))
      paths.remove(self._folder / f'{step}{WHOLE}')
    paths.move(self._folder / str(step), target)

  def _copy(self, wait_until_written: Callable[[], None]) -> None:
    wait_until_written()
    there = complete_steps(self._folder)
    here = sorted(int(path.name) for path in self._here.iterdir() if path.name.isdigit())
    for step in here:
      if step not in there:
        upload(self._here / str(step), self._folder / str(step))
    for step in there:
      if step not in here:
        paths.remove(self._folder / f'{step}{WHOLE}')
        paths.remove(self._folder / str(step))


def complete_steps(folder: Path) -> list[int]:
  """The steps of which a folder has a whole checkpoint, in order."""
  names = {path.name for path in folder.glob('[0-9]*')}
  steps = sorted(int(name) for name in names if name.isdigit())
  if not paths.is_remote(folder):
    return steps
  return [step for step in steps if is_complete(folder / str(step))]


def is_complete(checkpoint: Path) -> bool:
  """Whether a checkpoint of a store was written to its end."""
  return is_whole(checkpoint) if _is_copied(checkpoint) else (checkpoint / _COMMITTED).exists()


def readable(checkpoint: Path) -> epath.Path:
  """A checkpoint for Orbax to read: itself, or a copy of one on s3://."""
  return epath.Path(str(local(checkpoint) if _is_copied(checkpoint) else checkpoint))


def _is_copied(path: Path) -> bool:
  """Whether Orbax cannot open a path."""
  return str(path).startswith('s3://')

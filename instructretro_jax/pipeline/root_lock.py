"""One run at a time writes to a root."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import datetime
from pathlib import Path

import filelock

from instructretro_jax.pipeline import paths, store_lock
from instructretro_jax.pipeline.manifest import StageError

LOCK = 'run.lock'
_WAIT_SECS = 3.0  # enough to see that the holder is dead, and to take over


@contextlib.contextmanager
def held(root: Path) -> Iterator[None]:
  """Holds the lock of a root, which is made if need be; again by the same process is allowed.

  The file holds process id, host and the start of the process. That of a process of this host that
  has died is taken over; whether one of another host is alive cannot be seen from here.

  Raises StageError, which names the holder, if another process holds it.
  """
  if paths.is_remote(root):
    with store_lock.held(root / LOCK):
      yield
    return
  root.mkdir(parents=True, exist_ok=True)
  path = root.resolve() / LOCK
  lock = filelock.SoftFileLock(path, timeout=_WAIT_SECS, is_singleton=True, thread_local=False)
  try:
    lock.acquire()
  except filelock.Timeout:
    raise StageError(f'{root} is in use by another run, {_holder(path)}') from None
  try:
    yield
  finally:
    lock.release()


def _holder(path: Path) -> str:
  """Who holds a lock, since when, and what to do."""
  try:
    lines = path.read_text(encoding='utf-8').splitlines()
    began = datetime.datetime.fromtimestamp(path.stat().st_mtime).isoformat(' ', 'seconds')
  except OSError:
    return 'which ended just now: start again'
  process, host = lines[:2] if len(lines) > 1 else ('unknown', 'unknown')
  return (
    f'process {process} on host {host} since {began}: wait for it, or choose another --root; '
    f'if that process is gone, delete {path}'
  )

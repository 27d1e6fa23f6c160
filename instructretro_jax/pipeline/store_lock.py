"""The lock of a root in a store: an object that its holder writes anew as long as it lives."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import datetime
import json
import os
from pathlib import Path
import secrets
import socket
import threading
import time
from typing import Any

from instructretro_jax.pipeline import paths
from instructretro_jax.pipeline.manifest import StageError, write_bytes

RENEWED_SECS = 5.0
DEAD_SECS = 30.0  # without being written anew; no clocks of two machines are compared
_SETTLED_SECS = 2.0  # in which all who have seen a dead holder have written

_held: set[str] = set()


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
  """Holds the lock `path`; again by the same process is allowed.

  A store creates an object that is not there for one alone. The lock of a holder that has died, of
  this host at once and of another when it was not written anew for half a minute, is taken over.

  Raises StageError, which names the holder, if another process holds it.
  """
  if str(path) in _held:
    yield
    return
  lock = _Lock(path)
  lock.acquire()
  _held.add(str(path))
  ended = threading.Event()
  renewing = threading.Thread(target=lock.renew, args=(ended,), daemon=True)
  renewing.start()
  try:
    yield
  finally:
    _held.discard(str(path))
    ended.set()
    renewing.join()
    lock.release()


class _Lock:
  def __init__(self, path: Path):
    self._path, self._token, self._count = path, secrets.token_hex(8), 0
    self._since = datetime.datetime.now().astimezone().isoformat(' ', 'seconds')

  def acquire(self) -> None:
    if self._create():
      return
    seen, since = self._read(), time.monotonic()
    while not _is_dead_here(seen) and time.monotonic() - since < DEAD_SECS:
      time.sleep(RENEWED_SECS / 5)
      if (found := self._read()) is None and self._create():
        return
      if found != seen:
        raise StageError(f'{self._path.parent} is in use by another run, {_in_words(found)}')
    write_bytes(self._path, self._content())
    time.sleep(_SETTLED_SECS)
    if (self._read() or {}).get('token') != self._token:
      raise StageError(f'{self._path.parent} was taken by another run just now: wait for it')

  def renew(self, ended: threading.Event) -> None:
    while not ended.wait(RENEWED_SECS):
      with contextlib.suppress(Exception):  # a store that is away: the next time may do
        if (self._read() or {}).get('token') != self._token:
          return  # taken over, by one that saw nothing written for so long
        write_bytes(self._path, self._content())

  def release(self) -> None:
    if (self._read() or {}).get('token') == self._token:
      paths.remove(self._path)

  def _create(self) -> bool:
    content = self._content()
    try:
      paths.store(self._path).pipe_file(paths.store_name(self._path), content, mode='create')
    except FileExistsError:
      found = self._read()  # our own, if the answer to a first try was lost
      return found is not None and found['token'] == self._token
    except FileNotFoundError as error:
      bucket, _ = paths.bucket_and_key(self._path)
      raise StageError(
        f'{self._path.parent}: there is no bucket {bucket}: make it, or correct the address'
      ) from error
    except PermissionError as error:
      raise StageError(
        f'{self._path.parent}: its store refuses to write there ({error}): check the credentials'
      ) from error
    return True

  def _content(self) -> bytes:
    self._count += 1
    holder = {'process': os.getpid(), 'host': socket.gethostname(), 'since': self._since}
    return json.dumps({**holder, 'token': self._token, 'renewed': self._count}).encode()

  def _read(self) -> dict[str, Any] | None:
    try:
      return json.loads(self._path.read_bytes())
    except FileNotFoundError:
      return None


def _in_words(holder: dict[str, Any] | None) -> str:
  if holder is None:
    return 'which ended just now: start again'
  return (
    f'process {holder["process"]} on host {holder["host"]} since {holder["since"]}: wait for it, '
    'or choose another --root'
  )


def _is_dead_here(holder: dict[str, Any] | None) -> bool:
  """Whether a process of this host has died that holds a lock."""
  if holder is None or holder['host'] != socket.gethostname():
    return False
  try:
    os.kill(holder['process'], 0)
  except ProcessLookupError:
    return True
  except PermissionError:
    pass
  return False

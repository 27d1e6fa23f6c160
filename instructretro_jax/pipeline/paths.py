"""Paths of files, of folders of this machine and of stores of objects (gs://, s3://), alike.

A path of this machine is a `pathlib.Path`. That of a store is a universal-pathlib `UPath`, which
has the methods of one: what only one of them can do stands here. Both are annotated as `Path`.

A store has no folders and no renames, and takes an object whole or not at all. So what is written
is complete when a last object says so (`atomic.py`, `manifest.commit`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import contextlib
import errno
import os
from pathlib import Path
import shutil
import tempfile
from typing import Any, cast

# Else Orbax opens a store by TensorFlow. It asks once, at its first path of any kind.
os.environ.setdefault('EPATH_USE_TF', '0')

STORES = ('gs', 's3')
_NO_LISTINGS: dict[str, Any] = {'use_listings_cache': False}  # other processes write there too
# botocore waits 0.5 s before it asks again, then twice as long each time, up to 20 s: about a
# minute in all. gcsfs itself asks six times, which takes half a minute.
_RETRIES = {'max_attempts': 8, 'mode': 'standard'}
_LIBRARIES = ('aiobotocore', 'aiohttp', 'botocore', 'gcsfs', 'google', 's3fs')
_OPTIONS = {
  'gs': _NO_LISTINGS,
  's3': {**_NO_LISTINGS, 'config_kwargs': {'retries': _RETRIES, 'connect_timeout': 10}},
}


def to_path(name: str | os.PathLike[str]) -> Path:
  """The path that a user gives: a tilde is the home folder, gs:// and s3:// begin that of a store.

  Raises OSError for any other kind of address.
  """
  if is_remote(name):
    return cast(Path, name)
  text = os.fspath(name)
  protocol, separator, rest = text.partition('://')
  if not separator or '/' in protocol:
    return Path(text).expanduser()
  if protocol not in STORES or not rest.strip('/'):
    raise OSError(
      errno.EPROTONOSUPPORT, 'neither a folder, nor gs://BUCKET/NAME, nor s3://BUCKET/NAME', text
    )
  _set_environment()
  from upath import UPath  # here, since it takes half a second

  return cast(Path, UPath(text.rstrip('/'), **_OPTIONS[protocol]))


def _set_environment() -> None:
  """What libraries are told by the environment, unless the user has told them otherwise."""
  # gcsfs asks for the kind of a bucket before each call, with credentials that need not exist
  os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
  if emulator := os.environ.get('STORAGE_EMULATOR_HOST'):
    os.environ.setdefault('TENSORSTORE_GCS_HTTP_URL', emulator)


def is_of_store(error: BaseException) -> bool:
  """Whether an error is one of the libraries that speak with stores."""
  return type(error).__module__.partition('.')[0] in _LIBRARIES


def is_remote(path: object) -> bool:
  """Whether a path is one of a store."""
  return not isinstance(path, (str, os.PathLike))


def absolute(path: Path) -> Path:
  """The path, from the root of its file system on."""
  return path if is_remote(path) else path.absolute()


def resolved(path: Path) -> Path:
  """The path without links."""
  return path if is_remote(path) else path.resolve()


def is_link(path: Path) -> bool:
  """Whether a path is a link to another."""
  return not is_remote(path) and path.is_symlink()


def make_folder(path: Path) -> None:
  """Makes a folder, and those around it; a store has none. (Asked to, s3fs would make a bucket.)"""
  if not is_remote(path):
    path.mkdir(parents=True, exist_ok=True)


def remove(path: Path) -> None:
  """Deletes a file, or a folder with all below it; nothing if nothing is there."""
  if is_remote(path):
    with contextlib.suppress(FileNotFoundError):
      store(path).rm(store_name(path), recursive=True)
  elif path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def copy(path: Path, target: Path) -> None:
  """Copies a file from or to a store, which does it itself where both lie there."""
  if not is_remote(target):
    make_folder(target.parent)
    store(path).get_file(store_name(path), str(target))
  elif not is_remote(path):
    store(target).put_file(str(path), store_name(target))
  elif store(path) is store(target):
    store(path).cp_file(store_name(path), store_name(target))
  else:
    with tempfile.TemporaryDirectory(prefix='instructretro_') as folder:
      copy(path, Path(folder) / path.name)
      copy(Path(folder) / path.name, target)


def move(path: Path, target: Path) -> None:
  """Gives a folder another name; in a store its files are copied and deleted, one by one."""
  if not is_remote(path):
    make_folder(target.parent)
    path.rename(target)
    return
  for name in files_below(path):
    copy(path / name, target / name)
  remove(path)


def files_below(folder: Path) -> dict[str, int]:
  """Bytes of all files at any depth, by their path below the folder."""
  if is_remote(folder):
    return {name: version[0] for name, version in versions_below(folder).items()}
  files = (path for path in folder.rglob('*') if path.is_file())
  sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
  return {name: sizes[name] for name in sorted(sizes)}


def sizes_of(folder: Path, names: Iterable[str]) -> dict[str, int]:
  """Bytes of those of the files below a folder that are there, without a request for each."""
  if is_remote(folder):
    return files_below(folder)
  return {name: (folder / name).stat().st_size for name in names if (folder / name).is_file()}


def version_of(path: Path) -> list[Any]:
  """Changes when a file does: its size, and its time of change or what its store has instead.

  Raises FileNotFoundError if there is no file.
  """
  if not is_remote(path):
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
  return _version(store(path).info(store_name(path)))


def versions_below(folder: Path) -> dict[str, list[Any]]:
  """As `version_of`, of all files below a folder of a store, by one request."""
  base = store_name(folder)
  found = store(folder).find(base, detail=True)
  return {name.removeprefix(f'{base}/'): _version(found[name]) for name in sorted(found)}


def _version(info: dict[str, Any]) -> list[Any]:
  return [info['size'], str(info.get('generation') or info['ETag'])]


def read_range(path: Path, start: int, stop: int) -> bytes:
  """Bytes of a file from `start` to before `stop`, by one request."""
  if is_remote(path):
    return store(path).cat_file(store_name(path), start=start, end=stop)
  with path.open('rb') as file:
    file.seek(start)
    return file.read(stop - start)


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[Path]:
  """An empty folder of this machine that is gone afterwards: at `path` if that is of it too."""
  if is_remote(path):
    with tempfile.TemporaryDirectory(prefix='instructretro_') as folder:
      yield Path(folder)
    return
  remove(path)
  make_folder(path)
  try:
    yield path
  finally:
    remove(path)


def store(path: Path) -> Any:
  """The fsspec file system of a path of a store."""
  return cast(Any, path).fs


def store_name(path: Path) -> str:
  """What the file system of its store calls a path: bucket and key."""
  return cast(Any, path).path


def bucket_and_key(path: Path) -> tuple[str, str]:
  """The parts of a path of a store."""
  bucket, _, key = store_name(path).partition('/')
  return bucket, key

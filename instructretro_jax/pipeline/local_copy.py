"""Copies of what a store holds, for libraries that read nothing but files of this machine."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
import time

import filelock

from instructretro_jax.pipeline import paths
from instructretro_jax.pipeline.atomic import atomic
from instructretro_jax.pipeline.caches import cache_folder

_LIMIT = 'INSTRUCTRETRO_CACHE_GB'  # of all copies together
_DEFAULT_GB = 100.0
_IN_USE_SECS = 3600.0  # since a copy was asked for; until then it may still be opened


def local(path: Path) -> Path:
  """A path of this machine with the same content, a file or a folder; itself if it is of it.

  Copies are kept below the cache folder by address and version, so a changed object is fetched
  anew. Processes share them, and those unused for longest are deleted where all take more than
  $INSTRUCTRETRO_CACHE_GB gigabytes. Raises FileNotFoundError if the store has nothing there.
  """
  if not paths.is_remote(path):
    return path
  versions = {'': paths.version_of(path)} if path.is_file() else paths.versions_below(path)
  if not versions:
    raise FileNotFoundError(2, 'No such file or folder', str(path))
  sizes = {name: version[0] for name, version in versions.items()}
  key = hashlib.sha256(json.dumps([str(path), versions]).encode()).hexdigest()[:32]
  folder = cache_folder() / 'stores' / key
  copy = folder / path.name
  paths.make_folder(folder.parent)
  with filelock.FileLock(folder.with_suffix('.lock')):
    if not _is_whole(copy, sizes):
      paths.remove(folder)
      _make_room(folder.parent, sum(sizes.values()))
      with atomic(folder) as partial:
        for name, size in sizes.items():
          _fetch(path / name if name else path, partial / path.name / name, size)
    os.utime(folder)
  return copy


def _is_whole(copy: Path, sizes: dict[str, int]) -> bool:
  files = [(copy / name if name else copy, size) for name, size in sizes.items()]
  return all(file.is_file() and file.stat().st_size == size for file, size in files)


def _fetch(path: Path, target: Path, size: int) -> None:
  paths.copy(path, target)
  if (found := target.stat().st_size) != size:
    raise OSError(f'{path}: {found} bytes came where its store has {size}: start again')


def _make_room(folder: Path, wanted: int) -> None:
  """Deletes the copies that were not asked for since longest, as far as they are too many."""
  limit = float(os.environ.get(_LIMIT, _DEFAULT_GB)) * 1e9
  copies = sorted((c for c in folder.iterdir() if c.is_dir()), key=lambda c: c.stat().st_mtime)
  sizes = {copy: sum(paths.files_below(copy).values()) for copy in copies}
  for copy in copies:
    if sum(sizes.values()) + wanted <= limit:
      return
    if time.time() - copy.stat().st_mtime > _IN_USE_SECS:
      paths.remove(copy)
      del sizes[copy]

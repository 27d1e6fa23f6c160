"""Files that an experiment names by their path, identified by what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from instructretro_jax.pipeline import caches, manifest, paths
from instructretro_jax.pipeline.notes import note

_KEY = 'file '  # before a path, among the inputs of a plan


def input_hashes(configured: Any, recorded: Mapping[str, str]) -> dict[str, str]:
  """sha256 of every file that a dataclass, or one that it holds, lists by `input_files()`.

  Args:
    recorded: inputs of the plan that the folder has. What was made of files that are gone since
      remains valid: their hashes are taken from there.

  Returns: hashes by 'file ' and the path.
  """
  found = {f'{_KEY}{path}': content_sha256(path) for path in sorted(set(_files(configured)))}
  gone = {
    key: value
    for key, value in recorded.items()
    if key.startswith(_KEY) and not paths.to_path(key.removeprefix(_KEY)).exists()
  }
  return gone | found


def refuse_changed(configured: Any, recorded: Mapping[str, str], folder: Path) -> None:
  """Raises StageError if a file of a dataclass is not as it was when a folder was made of it."""
  for key, sha256 in input_hashes(configured, {}).items():
    if recorded.get(key, sha256) != sha256:
      raise manifest.StageError(
        f'{key} has changed since {folder} was made of it: put the old one back, or rebuild with '
        f'--rebuild={folder.name}'
      )


def content_sha256(path: Path) -> str:
  """The sha256 of a file, read anew only if its size or its time of change is another."""
  about = paths.version_of(path)
  key = hashlib.sha256(str(paths.resolved(path)).encode('utf-8', 'surrogateescape')).hexdigest()
  kept = caches.cache_folder() / 'content' / f'{key}.json'
  try:
    *before, sha256 = json.loads(kept.read_text())
    if before == about:
      return sha256
  except (OSError, ValueError):
    pass  # not there, or from a version that wrote something else: read the file
  sha256 = manifest.file_sha256(path)
  try:
    manifest.write_text(kept, json.dumps([*about, sha256]))
  except OSError as error:
    note(f'{path} is read anew each time: {manifest.in_words(error)}')
  return sha256


def _files(value: Any) -> Iterator[Path]:
  """Those files that are there."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    if hasattr(value, 'input_files'):
      yield from (path for path in value.input_files() if path.is_file())
    for field in dataclasses.fields(value):
      yield from _files(getattr(value, field.name))
  elif isinstance(value, Mapping):
    for one in value.values():
      yield from _files(one)
  elif isinstance(value, (list, tuple)):
    for one in value:
      yield from _files(one)

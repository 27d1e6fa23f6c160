"""Stage folders: what a stage was asked, what it read, what it wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import difflib
import errno
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from instructretro_jax.pipeline import paths
from instructretro_jax.pipeline.atomic import WHOLE, atomic

MANIFEST = 'manifest.json'
_PLAN = 'plan.json'
_PACKAGES = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'seqio', 'scann', 'tensorstore', 'numpy')


class StageError(Exception):
  """A stage cannot run; the message says what was wrong and what to do, in words for a user."""


_REMEDIES = {
  errno.ENOSPC: 'make room and start again, what is finished is kept',
  errno.EDQUOT: 'make room and start again, what is finished is kept',
  errno.EROFS: 'give a folder that can be written to',
  errno.EACCES: 'give a folder or file that this user may use',
  errno.EPERM: 'give a folder or file that this user may use',
  errno.EMFILE: 'raise the limit of open files (ulimit -n)',
}


def in_words(error: OSError) -> str:
  """What the operating system refused, for which file, and what to do, in one line."""
  reason = error.strerror or str(error) or type(error).__name__
  where = f'{error.filename}: ' if error.filename is not None else ''
  remedy = _REMEDIES.get(error.errno or 0, 'correct the path, or what stands there')
  return f'{where}{reason}: {remedy}'


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a stage is asked, known before it runs.

  `execution` decides nothing but the rounding of what it writes, and is no part of its identity.
  """

  stage: str  # class of the stage
  arguments: Mapping[str, Any]  # JSON form of its fields
  inputs: Mapping[str, str]  # upstream folder -> fingerprint
  execution: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # by path of a field

  @property
  def identity(self) -> dict[str, Any]:
    """What two plans of the same result have in common."""
    return {'stage': self.stage, 'arguments': self.arguments, 'inputs': self.inputs}


@dataclasses.dataclass(frozen=True)
class Manifest:
  """A finished stage."""

  plan: Plan
  counts: Mapping[str, Any]
  files: Mapping[str, Mapping[str, Any]]  # relative path -> {bytes, sha256}
  versions: Mapping[str, str]

  @property
  def fingerprint(self) -> str:
    """Changes when the plan, the counts or any listed byte changes; not with package versions."""
    content = [self.plan.identity, self.counts, self.files]
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
  """Writes a file that appears whole or not at all."""
  write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
  """Writes a file that appears whole or not at all."""
  if paths.is_remote(path):
    paths.store(path).pipe_file(paths.store_name(path), content)
    return
  with atomic(path) as partial:
    partial.write_bytes(content)


def read_manifest(folder: Path) -> Manifest:
  """The manifest of a finished stage. Raises StageError if the stage never finished."""
  if (found := _manifest(folder)) is None:
    raise StageError(f'{folder} holds no finished stage ({MANIFEST} is missing): run it first')
  return found


def _manifest(folder: Path) -> Manifest | None:
  if (content := _read_json(folder / MANIFEST)) is None:
    return None
  try:
    return Manifest(**content | {'plan': Plan(**content['plan'])})
  except (TypeError, KeyError) as error:
    raise _damaged(folder / MANIFEST, error) from error


def recorded_plan(folder: Path) -> Plan | None:
  """The plan that a folder was made, or begun, with; None if it has none."""
  if (made := _manifest(folder)) is not None:
    return made.plan
  if (content := _read_json(folder / _PLAN)) is None:
    return None
  try:
    return Plan(**content)
  except TypeError as error:
    raise _damaged(folder / _PLAN, error) from error


def is_finished(folder: Path) -> bool:
  """Whether a folder holds a finished stage."""
  return (folder / MANIFEST).exists()


def has_begun(folder: Path) -> bool:
  """Whether anything was made there; of an attempt that was refused there is a plan alone."""
  return folder.is_dir() and any(path.name != _PLAN for path in folder.iterdir())


def check_plan(
  folder: Path, plan: Plan, extends: Callable[[Mapping[str, Any]], bool] = lambda there: False
) -> bool:
  """Says whether `folder` already holds what `plan` asks for, finished.

  Args:
    extends: whether a stage that was made, or begun, with other arguments is gone on from.

  Raises StageError, with the differing lines, if the folder was made (or begun) with another plan,
  or if a file that its manifest lists is missing or has another size.
  """
  manifest = _manifest(folder)
  if manifest is None:
    there = recorded_plan(folder)
    if there is not None and has_begun(folder):
      _is_same(folder, there, plan, extends)
    return False
  if not _is_same(folder, manifest.plan, plan, extends):
    return False
  sizes = paths.sizes_of(folder, manifest.files)
  for name, entry in manifest.files.items():
    if sizes.get(name) != entry['bytes']:
      where = f'{folder / name} is missing or cut short'
      raise StageError(f'{where}: rebuild with --rebuild={folder.name}')
  return True


def begin(folder: Path, plan: Plan) -> None:
  """Marks a folder as being filled according to `plan`, and as no longer finished."""
  write_text(folder / _PLAN, _canonical(dataclasses.asdict(plan)))
  paths.remove(folder / MANIFEST)


def commit(folder: Path, plan: Plan, counts: Mapping[str, Any], unlisted: frozenset[str]) -> None:
  """Ends a stage: checksums every file but those below `unlisted` names, writes the manifest."""
  files = {}
  for name, size in paths.files_below(folder).items():
    path = folder / name
    is_own = path.name in (MANIFEST, _PLAN) or path.suffix == WHOLE
    if Path(name).parts[0] not in unlisted and not is_own:
      files[name] = {'bytes': size, 'sha256': file_sha256(path)}
  versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
  manifest = Manifest(plan, counts, files, versions)
  content = json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True)
  _write_once(folder / MANIFEST, content.encode())
  paths.remove(folder / _PLAN)


def _write_once(path: Path, content: bytes) -> None:
  """Writes a file that nobody else has written. Raises StageError if a store says one has."""
  if not paths.is_remote(path):
    write_bytes(path, content)
    return
  try:
    paths.store(path).pipe_file(paths.store_name(path), content, mode='create')
  except FileExistsError as error:
    if path.read_bytes() != content:  # not the answer to a first try that was lost
      raise StageError(
        f'{path.parent} was finished by another run meanwhile: start again'
      ) from error


def check_count(folder: Path, what: str, found: int, expected: int) -> None:
  """Raises StageError if a stage has written more or fewer of something than it has read."""
  if found != expected:
    raise StageError(
      f'{folder} has {found} {what} where {expected} were read: something else writes to it, or '
      f'the disk is damaged; rebuild with --rebuild={folder.name}'
    )


def wrong_files(folder: Path) -> Iterator[str]:
  """Reads every file that a manifest lists; yields what is wrong with each, in words."""
  for name, entry in read_manifest(folder).files.items():
    path = folder / name
    if not path.is_file():
      yield f'{path} is missing'
    elif (size := path.stat().st_size) != entry['bytes']:
      yield f'{path} has {size} bytes, not the {entry["bytes"]} that were written'
    elif file_sha256(path) != entry['sha256']:
      yield f'{path} holds other bytes than were written'


def file_sha256(path: Path) -> str:
  """Checksum of one file."""
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _read_json(path: Path) -> dict[str, Any] | None:
  """What a file holds; None if there is no such file."""
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except (FileNotFoundError, NotADirectoryError):
    return None
  except ValueError as error:
    raise _damaged(path, error) from error
  if not isinstance(content, dict):
    raise _damaged(path, 'it is no JSON object')
  return content


def _damaged(path: Path, error: object) -> StageError:
  return StageError(f'{path} is damaged ({error}): rebuild with --rebuild={path.parent.name}')


def _canonical(value: Any) -> str:
  return json.dumps(value, sort_keys=True, separators=(',', ':'))


def _is_same(
  folder: Path, there: Plan, asked: Plan, extends: Callable[[Mapping[str, Any]], bool]
) -> bool:
  """Whether a plan is the same; not, if the one extends the other; else raises StageError."""
  if _canonical(there.identity) == _canonical(asked.identity):
    return True
  if dataclasses.replace(asked, arguments=there.arguments).identity == there.identity and extends(
    there.arguments
  ):
    return False
  in_full = lambda plan: json.dumps(plan.identity, indent=1, sort_keys=True)
  diff = difflib.unified_diff(
    in_full(there).splitlines(),
    in_full(asked).splitlines(),
    'in the folder',
    'asked for',
    lineterm='',
    n=0,
  )
  shown = '\n'.join(line for line in diff if not line.startswith('@@'))
  raise StageError(
    f'{folder} was made with another configuration:\n{shown}\n'
    f'Rebuild it and what follows with --rebuild={folder.name}, or choose another --root.'
  )

"""A stage: a pure function from its fields and upstream folders to one folder of files."""

from __future__ import annotations

from collections.abc import Mapping
import contextlib
import dataclasses
import inspect
from pathlib import Path
from typing import Any, ClassVar

from instructretro_jax.pipeline import configuration, manifest, paths, root_lock
from instructretro_jax.pipeline.atomic import is_of_full_disk, remove_partial
from instructretro_jax.pipeline.content import input_hashes
from instructretro_jax.pipeline.hosts import ONE, Hosts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """Base of all stages. Subclasses are frozen dataclasses that gin builds.

  Every field must be JSON-like: numbers, strings, tuples, mappings or other dataclasses. All are
  part of the stage's identity but those listed in `only_how` (pipeline/configuration.py). A field
  that names an upstream stage is listed by `reads`. Files that a field names are part of it by
  their content, where it or what it holds has `input_files`.
  """

  name: str  # folder below the root of the run

  # Names in the stage folder that no checksum covers: logs hold times of day and speeds.
  unlisted: ClassVar[frozenset[str]] = frozenset({'logs'})
  # Whether every process of the run calls `build`, or process 0 alone while the others wait.
  on_all_hosts: ClassVar[bool] = False

  def reads(self) -> tuple[str, ...]:
    """Names of the stages whose folders `build` reads."""
    return ()

  def extends(self, there: Mapping[str, Any]) -> bool:
    """Whether `build` goes on from what was made with other arguments, which else are refused.

    Args:
      there: those arguments, as `configuration.identity` gives them.
    """
    del there
    return False

  def summary(self) -> str:
    """What `build` does, in one sentence for the log: the first line of the docstring."""
    return (inspect.getdoc(type(self)) or '').partition('\n')[0]

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    """Fills `folder` and returns the counts for its manifest.

    Called again after a kill with the files already there: finished shards are kept, and the
    bytes and counts at the end are those of an uninterrupted call. With `on_all_hosts`, every
    process returns the same counts, and process 0 writes whatever is not written by all together.
    """
    raise NotImplementedError(type(self).__name__)


def plan(stage: Stage, root: Path) -> manifest.Plan:
  """What a stage would do, given the finished stages it reads."""
  inputs = {name: manifest.read_manifest(root / name).fingerprint for name in stage.reads()}
  recorded = manifest.recorded_plan(root / stage.name)
  inputs |= input_hashes(stage, {} if recorded is None else recorded.inputs)
  return _plan(stage, inputs)


def _plan(stage: Stage, inputs: Mapping[str, str]) -> manifest.Plan:
  how = configuration.execution(stage)
  return manifest.Plan(type(stage).__name__, configuration.identity(stage), inputs, how)


def is_up_to_date_but_for_inputs(stage: Stage, root: Path) -> bool:
  """As `is_up_to_date`, as if what the stage reads were what it has read."""
  there = manifest.recorded_plan(root / stage.name)
  if there is None:
    return False
  return manifest.check_plan(root / stage.name, _plan(stage, there.inputs), stage.extends)


def is_up_to_date(stage: Stage, root: Path) -> bool:
  """Whether `run` would do nothing. Raises StageError if the folder holds something else."""
  folder = root / stage.name
  if not manifest.check_plan(folder, plan(stage, root), stage.extends):
    return False
  for name in sorted(stage.unlisted - {'logs'}):
    if not any((folder / name).glob('*')):
      raise manifest.StageError(f'{folder / name} is gone: rebuild with --rebuild={stage.name}')
  return True


def run(stage: Stage, root: Path, hosts: Hosts = ONE) -> manifest.Manifest:
  """Brings the folder of one stage up to date and returns its manifest.

  Every process of the run calls it; what there is to do is decided, written and read by process 0,
  which holds the lock of the root meanwhile. On NFS the others may not see yet what it has written.
  """
  folder = root / stage.name
  if not hosts.on_main(lambda: is_up_to_date(stage, root)):
    hosts.on_main(lambda: refuse_linked(stage, root))
    with contextlib.ExitStack() as stack:
      hosts.on_main(lambda: stack.enter_context(root_lock.held(root)))
      asked = manifest.Plan(**hosts.on_main(lambda: dataclasses.asdict(plan(stage, root))))
      hosts.on_main(lambda: manifest.begin(folder, asked))
      hosts.on_main(lambda: remove_partial(folder))
      build = lambda: _build(stage, root, folder)
      counts = build() if stage.on_all_hosts else hosts.on_main(build)
      hosts.on_main(lambda: manifest.commit(folder, asked, counts, stage.unlisted))
  made = hosts.on_main(lambda: dataclasses.asdict(manifest.read_manifest(folder)))
  return manifest.Manifest(**made | {'plan': manifest.Plan(**made['plan'])})


def _build(stage: Stage, root: Path, folder: Path) -> dict[str, Any]:
  """As Stage.build; a full disk, which libraries report each in its own way, is a StageError."""
  try:
    return stage.build(root, folder)
  except Exception as error:
    if not is_of_full_disk(error):
      raise
    raise manifest.StageError(
      f'the disk of {folder} is full: make room and start again, what is finished is kept'
    ) from error


def refuse_linked(stage: Stage, root: Path) -> None:
  """Raises StageError if the folder of a stage is a link: others read it, nothing is made there."""
  folder = root / stage.name
  if paths.is_link(folder):
    raise manifest.StageError(
      f'{folder} is a link to {folder.readlink()}, which other runs read too: it is not made anew '
      f'from here; delete the link to give {root} a {stage.name} of its own'
    )


def discard(stage: Stage, root: Path) -> None:
  """Deletes what a stage wrote. Raises StageError for a link to what others read."""
  refuse_linked(stage, root)
  paths.remove(root / stage.name / manifest.MANIFEST)  # first: then nothing is trusted
  paths.remove(root / stage.name)

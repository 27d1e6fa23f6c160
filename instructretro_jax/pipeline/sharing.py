"""Stages that several experiments have in common, made once and read by the roots of all.

The root of a run has a relative link in the place of a stage folder that it shares. All that reads
the folder, the checks of its manifest among it, follows the link; what would write to it or delete
it is refused (`stage.refuse_linked`). A copy would be as safe, but a corpus and its index may take
most of a disk. In a store, which has no links, and room, it is a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
import os
from pathlib import Path

from instructretro_jax.pipeline import configuration, manifest, paths
from instructretro_jax.pipeline.experiment import Experiment
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.pipeline.stage import Stage


def shared_stages(experiments: Sequence[Experiment]) -> tuple[str, ...]:
  """Names of the stages that come out the same in all, in the order of the first.

  Those are configured alike in every field, and read only such stages. A field that decides only
  how a stage is computed counts too: a sweep over it wants to see it computed each way.
  """
  first, *others = [{member.name: member for member in one.stages} for one in experiments]
  found: list[str] = []
  for name, member in first.items() if others else ():
    alike = all(name in other and _is_same(member, other[name]) for other in others)
    if alike and set(member.reads()) <= set(found):
      found.append(name)
  return tuple(found)


def refuse_equal(names: Sequence[str], experiments: Sequence[Experiment]) -> None:
  """Raises StageError if two of them, which have these names, are the same in every stage."""
  for n, one in enumerate(experiments):
    for name, other in zip(names, experiments[:n]):
      alike = len(one.stages) == len(other.stages)
      if alike and all(map(_is_same, one.stages, other.stages)):
        raise StageError(f'{name} and {names[n]} are one experiment: an axis changes no stage')


def unlinked(folders: Sequence[Path], root: Path) -> list[Path]:
  """Those of the folders of stages for which a root has nothing of that name."""
  return [folder for folder in folders if not _is_there(root / folder.name)]


def _is_there(folder: Path) -> bool:
  if paths.is_remote(folder):
    return manifest.recorded_plan(folder) is not None
  return os.path.lexists(folder)


def link(folders: Sequence[Path], root: Path) -> None:
  """Gives a root links to finished stages of others, where it has nothing of that name.

  A folder that is there already is left for the checks of a run. A link is there or not: no more
  is needed for it to be whole. Raises StageError if one is to be linked that is not finished.
  """
  for folder in unlinked(folders, root):
    manifest.read_manifest(folder)
    if paths.is_remote(root):
      _copy(folder, root / folder.name)
    else:
      root.mkdir(parents=True, exist_ok=True)
      target = os.path.relpath(folder.resolve(), root.resolve())
      (root / folder.name).symlink_to(target)


def _copy(folder: Path, target: Path) -> None:
  """Copies a finished stage to a store; the manifest last, since without it there is none."""
  names = [name for name in paths.files_below(folder) if name != manifest.MANIFEST]
  for name in (*names, manifest.MANIFEST):
    paths.copy(folder / name, target / name)


def _is_same(one: Stage, other: Stage) -> bool:
  return type(one) is type(other) and configuration.to_json(one) == configuration.to_json(other)

"""Whether a run still holds what its stages wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from instructretro_jax.pipeline import manifest
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.pipeline.progress import Bar


def findings(root: Path) -> Iterator[str]:
  """What is wrong below a run folder, or in a stage folder, a line each.

  Raises StageError if there is no finished stage.
  """
  if manifest.is_finished(root):
    folders = [root]
  else:
    folders = sorted(path for path in root.iterdir() if manifest.is_finished(path))
  if not folders:
    raise StageError(f'{root} holds no finished stage: give a run folder, or one of its stages')
  for folder in Bar(folders, desc='verify', unit='stage'):
    try:
      yield from manifest.wrong_files(folder)
      yield from _wrong_inputs(folder)
      yield from _wrong_checkpoint(folder)
    except (StageError, OSError) as error:
      yield str(error)


def _wrong_inputs(folder: Path) -> Iterator[str]:
  """Stages beside it that are not those which it read."""
  for name, fingerprint in manifest.read_manifest(folder).plan.inputs.items():
    upstream = folder.parent / name
    is_there = manifest.is_finished(upstream)
    if is_there and manifest.read_manifest(upstream).fingerprint != fingerprint:
      yield f'{folder} was made of another {name} than stands in {upstream}'


def _wrong_checkpoint(folder: Path) -> Iterator[str]:
  """Checkpoints have no checksum of files, since they are written on many hosts."""
  expected = manifest.read_manifest(folder).counts.get('params_sha256')
  if expected is None:
    return
  from instructretro_jax.train.checkpoint import Checkpoint  # loads JAX
  from instructretro_jax.train.fingerprint import params_sha256

  try:
    found = params_sha256(Checkpoint(folder).read())
  except (ValueError, KeyError, FileNotFoundError) as error:
    yield f'{folder / "checkpoints"} cannot be read: {str(error).splitlines()[0]}'
    return
  if found != expected:
    yield f'{folder / "checkpoints"} holds other parameters than were written'

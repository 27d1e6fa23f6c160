"""Which steps of an arm were computed how: on what mesh, in what pieces, by which kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from instructretro_jax.pipeline import configuration, manifest
from instructretro_jax.pipeline.hosts import Hosts
from instructretro_jax.pipeline.notes import note


def note_execution(arm: Any, mesh: Mesh, folder: Path, done: int) -> None:
  """Adds to execution.jsonl how an arm, a dataclass with a name, goes on from step `done`.

  Where steps before were computed in another way, that is said.
  """
  if not Hosts.here().is_main:
    return
  path = folder / 'execution.jsonl'
  there = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
  rows = [row for row in there if row['after_step'] < done]
  own = {'mesh': dict(mesh.shape), **configuration.execution(arm)}
  if not rows or rows[-1]['execution'] != own:
    if rows:
      before = rows[-1]['execution']
      changed = [f'{k} {before.get(k)} -> {own[k]}' for k in own if before.get(k) != own[k]]
      note(f'{arm.name}: goes on from step {done} in another way: {", ".join(changed)}')
    rows.append({'after_step': done, 'execution': own})
  if rows != there:
    manifest.write_text(path, ''.join(json.dumps(row) + '\n' for row in rows))

"""The mesh of an arm: each device computes a part of its own, or the arm is refused.

An axis that does not divide over the mesh is whole on every device: right, and up to as many times
the work, or the memory, as there are devices.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import TypeVar

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh
import numpy as np

from instructretro_jax.model.config import RetroConfig
from instructretro_jax.model.sharding import MESH_AXES, RULES, MeshConfig, local_mesh, make_mesh
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.pipeline.notes import note
from instructretro_jax.train.state import param_axes

Device = TypeVar('Device', bound=jax.Device)


def training_mesh(config: MeshConfig, batch_size: int, num_microbatches: int = 1) -> Mesh:
  """The mesh over all devices; with `data` -1 over as many as divide each microbatch evenly.

  Says so if devices are left idle.

  Raises StageError if the mesh does not fit the devices, the batch cannot be split over it, or a
  process would have no device.
  """
  devices = jax.devices()
  mesh = _fitting(make_mesh, config)
  rows = batch_size // num_microbatches
  data = largest_split(rows, config.fsdp, mesh.shape['data'])
  if config.data != -1 or data in (0, mesh.shape['data']):
    check_batch(batch_size, num_microbatches, mesh)
    return mesh
  fitted = dataclasses.replace(config, data=data)
  count, unit = math.prod(fitted.shape), mesh.shape['data'] * config.fsdp * num_microbatches
  said = f'{_batch(batch_size, num_microbatches)} is split over {count} of {len(devices)} devices'
  if count < jax.process_count():
    raise StageError(
      f'{said}, but each of the {jax.process_count()} processes needs one: a multiple of {unit} '
      'uses all; or start fewer processes'
    )
  if jax.process_index() == 0:
    note(f'{said}, the others are idle: a batch_size that is a multiple of {unit} uses all')
  used = np.array(spread(devices, count)).reshape(fitted.shape)
  return Mesh(used, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def evaluation_mesh(config: MeshConfig, batch_size: int) -> Mesh:
  """The mesh over devices of this process, for batches that are filled up to their size.

  Raises StageError if it has too few, or a batch cannot be split over them.
  """
  mesh = _fitting(local_mesh, config)
  check_batch(batch_size, 1, mesh)
  return mesh


def largest_split(rows: int, fsdp: int, most: int) -> int:
  """The largest size of `data`, up to `most`, that with fsdp splits rows evenly; 0 if none does."""
  return max((d for d in range(1, most + 1) if rows % (d * fsdp) == 0), default=0)


def spread(devices: Sequence[Device], count: int) -> list[Device]:
  """So many of the devices, of each process about as many as of the others, in their order."""
  seen: collections.Counter[int] = collections.Counter()
  ranks = []
  for device in devices:
    ranks.append(seen[device.process_index])
    seen[device.process_index] += 1
  chosen = sorted(range(len(devices)), key=ranks.__getitem__)[:count]
  return [devices[place] for place in sorted(chosen)]


def check_batch(batch_size: int, num_microbatches: int, mesh: Mesh | AbstractMesh) -> None:
  """Raises StageError if devices would have to compute each other's rows."""
  parts = mesh.shape['data'] * mesh.shape['fsdp']
  unit = parts * num_microbatches
  if batch_size % unit == 0:
    return
  below = batch_size // unit * unit
  sizes = f'{below} or {below + unit}' if below else str(unit)
  fewer = largest_split(batch_size, parts, num_microbatches - 1)
  raise StageError(
    f'{_batch(batch_size, num_microbatches)} cannot be split over {parts} devices (data x fsdp of '
    f'the mesh): give a batch size of {sizes}, '
    + (f'num_microbatches {fewer}, ' if fewer else '')
    + 'or more of the devices to tensor'
  )


def check_params(config: RetroConfig, with_retrieval: bool, mesh: Mesh | AbstractMesh) -> None:
  """Raises StageError if devices would compute or hold an axis of the parameters whole."""
  if found := whole_axes(config, with_retrieval, mesh):
    raise StageError(found)


def note_whole(config: RetroConfig, with_retrieval: bool, mesh: Mesh) -> None:
  """Says what `check_params` would refuse: weights that are given are used as they are."""
  if found := whole_axes(config, with_retrieval, mesh):
    note(found)


def whole_axes(config: RetroConfig, with_retrieval: bool, mesh: Mesh | AbstractMesh) -> str:
  """Which axes of the parameters do not divide, and what would, in words; empty if all do.

  Key/value heads of which the parts of the mesh are a multiple count as divided: each is on as many
  devices as share its queries, which costs these its own projections. With other numbers most
  of the attention would be computed whole.
  """
  sizes = param_axes(config, with_retrieval) if mesh.size > 1 else []
  faults = []
  for axis in MESH_AXES:
    here = [(name, size) for name, size in sizes if dict(RULES)[name] == axis]
    parts = mesh.shape[axis]
    if wrong := [f'{name} ({size})' for name, size in here if not _divides(name, size, parts)]:
      good = [n for n in range(1, parts) if all(_divides(*one, n) for one in here)]
      faults.append(
        f'{axis} {parts} of the mesh does not divide {", ".join(wrong)}, which every device would '
        f'hold whole: {axis} can be {", ".join(map(str, good))}'
      )
  return '; '.join(faults)


def _fitting(make: Callable[[MeshConfig], Mesh], config: MeshConfig) -> Mesh:
  try:
    return make(config)
  except ValueError as error:
    raise StageError(f'{error}: set sizes whose product is that number') from error


def _divides(name: str, size: int, parts: int) -> bool:
  return size % parts == 0 or (name == 'kv_heads' and parts % size == 0)


def _batch(batch_size: int, num_microbatches: int) -> str:
  parts = f' in {num_microbatches} microbatches' if num_microbatches > 1 else ''
  return f'a batch of {batch_size}{parts}'

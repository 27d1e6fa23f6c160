"""From logical axis names to mesh axes: the one table, for parameters and activations alike."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import math
from typing import Any, ClassVar

from flax import linen as nn
import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

Axes = Sequence[str | None]  # logical names of the axes of an array; None is never split


# logical name -> mesh axes that split it; parameters first, then activations
RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
  ('layers', None),  # of a stack that is scanned
  ('vocab', 'tensor'),
  ('heads', 'tensor'),
  ('kv_heads', 'tensor'),
  ('mlp', 'tensor'),
  ('embed', 'fsdp'),
  ('head', None),
  ('norm', None),
  ('offset', None),
  ('positions', None),
  ('batch', ('data', 'fsdp')),
  ('act_length', None),
  ('act_chunks', None),  # of a sequence
  ('act_neighbours', None),  # of a chunk
  ('act_embed', None),
  ('act_heads', 'tensor'),
  ('act_kv_heads', 'tensor'),
  ('act_head', None),
  ('act_mlp', 'tensor'),
  ('act_vocab', 'tensor'),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis of the mesh; `data` -1 takes all that are left.

  In training, `data` -1 takes those that divide a batch evenly (train/mesh.py).
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1

  only_how: ClassVar[frozenset[str]] = frozenset({'data', 'fsdp', 'tensor'})

  @property
  def shape(self) -> tuple[int, ...]:
    """Devices along each of MESH_AXES; -1 where all that are left are meant."""
    return tuple(getattr(self, axis) for axis in MESH_AXES)


MESH_AXES = tuple(field.name for field in dataclasses.fields(MeshConfig))
ONE_DEVICE = MeshConfig(data=1)

_UNSPLIT = AbstractMesh((1,) * len(MESH_AXES), MESH_AXES)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh over all devices. Raises ValueError if their number does not fit."""
  devices = list(devices or jax.devices())
  inner = math.prod(size for size in config.shape if size != -1)
  shape = tuple(len(devices) // inner if size == -1 else size for size in config.shape)
  if math.prod(shape) != len(devices):
    asked = ' x '.join(f'{axis} {size}' for axis, size in zip(MESH_AXES, config.shape))
    raise ValueError(f'a mesh of {asked} does not fit {len(devices)} devices')
  return jax.make_mesh(shape, MESH_AXES, (AxisType.Auto,) * len(shape), devices=devices)


def local_mesh(config: MeshConfig) -> Mesh:
  """The mesh over the first devices of this process; over all of them if `data` is -1.

  Raises ValueError if it has too few.
  """
  devices, size = jax.local_devices(), math.prod(config.shape)
  return make_mesh(config, devices[:size] if size > 0 else devices)


def to_spec(axes: Axes, shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
  """Where an array of these logical axes goes; an axis that does not divide evenly is whole.

  Raises ValueError for a logical name that the table does not have.
  """
  rules = dict(RULES)
  if unknown := [name for name in axes if name is not None and name not in rules]:
    raise ValueError(f'{unknown} of {tuple(axes)} are no logical axes; RULES has {sorted(rules)}')
  spec = []
  for name, size in zip(axes, shape, strict=True):
    target = rules[name] if name is not None else None
    over = (target,) if isinstance(target, str) else target or ()
    parts = math.prod(mesh.shape[axis] for axis in over)
    spec.append(target if parts and size % parts == 0 else None)
  return PartitionSpec(*spec)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """`x` with its axes, named by meaning, laid out over the mesh that is set.

  Without a mesh, or on one device, it is `x` itself, but the names are checked all the same.

  Raises ValueError for an unknown name, or if there are not as many names as axes.
  """
  mesh = jax.sharding.get_abstract_mesh()
  spec = to_spec(axes, x.shape, mesh if mesh.size > 1 else _UNSPLIT)
  return jax.lax.with_sharding_constraint(x, spec) if mesh.size > 1 else x


def num_parts(name: str, size: int) -> int:
  """In how many parts the mesh that is set splits an axis of that logical name; 1 without a mesh.

  Raises ValueError for an unknown name.
  """
  mesh = jax.sharding.get_abstract_mesh()
  mesh = mesh if mesh.size > 1 else _UNSPLIT
  (target,) = to_spec((name,), (size,), mesh)
  axes = (target,) if isinstance(target, str) else target or ()
  return math.prod(mesh.shape[axis] for axis in axes)


def param_shardings(abstract_params: Any, mesh: Mesh | AbstractMesh) -> Any:
  """Shardings of parameters as a model's abstract init gives them, boxed with logical names."""

  def place(box: nn.LogicallyPartitioned) -> NamedSharding:
    return NamedSharding(mesh, to_spec(box.names, box.value.shape, mesh))

  is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)
  return jax.tree.map(place, abstract_params, is_leaf=is_box)


def over_shards(
  function: Callable[..., Any], in_axes: Sequence[Axes], out_axes: Axes
) -> Callable[..., Any]:
  """`function` run by each device on its part of the arguments; itself where no mesh is set.

  Args:
    in_axes: logical names of the axes of each argument, which may also be None.
    out_axes: those of the result, which has as many axes as the first argument.

  Raises ValueError if a named axis would be split in one argument and not in another.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return function

  def mapped(*arguments: Any) -> Any:
    specs, split = [], {}
    for axes, x in zip(in_axes, arguments, strict=True):
      specs.append(PartitionSpec() if x is None else to_spec(axes, x.shape, mesh))
      split |= {} if x is None else dict(zip(axes, specs[-1]))
    if split.get('act_kv_heads') != split.get('act_heads'):
      raise ValueError(
        f'the key/value heads do not divide over the {mesh.shape["tensor"]} parts of the mesh axis '
        "tensor: make it smaller, or attention = 'dot_product'"
      )
    out = to_spec(out_axes, arguments[0].shape, mesh)
    run = jax.shard_map(function, in_specs=tuple(specs), out_specs=out, check_vma=False)
    return run(*arguments)

  return mapped


def batch_sharding(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
  """Where an array of a batch goes: its first axis split over the data axes of the mesh."""
  return NamedSharding(mesh, to_spec(('batch', *(None,) * (len(shape) - 1)), shape, mesh))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
  """Rows of a batch that the devices of this process hold, in order."""
  sharding = batch_sharding((batch_size,), mesh)
  parts = sharding.addressable_devices_indices_map((batch_size,)).values()
  return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts]))


def put_batch(batch: Any, mesh: Mesh, batch_size: int) -> Any:
  """Batches of `batch_size` rows on the mesh, from the `local_rows` that this process has read."""

  def place(x: np.ndarray) -> jax.Array:
    shape = (batch_size, *x.shape[1:])
    return jax.make_array_from_process_local_data(batch_sharding(shape, mesh), x, shape)

  return jax.tree.map(place, batch)


def put_batches(
  batches: Iterable[Any], mesh: Mesh, batch_size: int, ahead: int = 2
) -> Iterator[Any]:
  """`put_batch` of each; `ahead` of them are on their way while one is being used."""
  begun: collections.deque[Any] = collections.deque()
  for batch in batches:
    begun.append(put_batch(batch, mesh, batch_size))
    if len(begun) > ahead:
      yield begun.popleft()
  yield from begun

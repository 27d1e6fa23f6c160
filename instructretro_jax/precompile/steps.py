"""The steps of an experiment on abstract arguments: nothing is allocated, read or run."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from instructretro_jax.array_types import Params
from instructretro_jax.inference.cache import Cache, compile_step, prefill
from instructretro_jax.model import flops
from instructretro_jax.model.cudnn import assuming_hopper
from instructretro_jax.model.retro import Retro, is_open
from instructretro_jax.model.sharding import batch_sharding, to_spec
from instructretro_jax.pipeline import manifest
from instructretro_jax.pipeline.experiment import Experiment
from instructretro_jax.train.gates import RANDOM
from instructretro_jax.train.loop import Train
from instructretro_jax.train.mesh import check_batch, check_params
from instructretro_jax.train.state import abstract_params
from instructretro_jax.train.utilisation import step_flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """A jitted function with its abstract arguments, and what is known of it beforehand.

  Attributes:
    model_flops: of all devices together.
    model_flops_masked: the same with causal attention counted in full.
  """

  function: Callable[..., Any]
  arguments: tuple[Any, ...]
  parameters: int
  trained_parameters: int
  model_flops: float
  model_flops_masked: float

  def lower(self, mesh: Mesh) -> jax.stages.Lowered:
    """The step as the compiler gets it."""
    with jax.set_mesh(mesh), assuming_hopper():  # as all GPUs of topology.py are
      return self.function.lower(*self.arguments)


def find_arm(experiment: Experiment, step: str, name: str | None = None) -> Train:
  """The arm of that name, or else the last one that the kind of step fits.

  Raises StageError if the experiment has no such arm.
  """
  kind = 'instruct' if step == 'instruct' else 'train'
  arms = {m.name: m for m in experiment.stages if isinstance(m, Train)}
  fitting = [arm for arm in arms.values() if arm.task.kind == kind]
  if name is None and fitting:
    return fitting[-1]
  if name not in arms:
    raise manifest.StageError(
      f'the experiment has no arm {name or f"for step {step}"!r}; its arms are {list(arms)}'
    )
  return arms[name]


def make_step(arm: Train, step: str, mesh: Mesh, batch_size: int | None = None) -> Step:
  """The step of an arm at its batch size, or another.

  Raises StageError if devices would have to compute each other's part.
  """
  batch_size = batch_size or arm.batch_size
  check_batch(batch_size, 1 if step == 'decode' else arm.num_microbatches, mesh)
  check_params(arm.model, arm.with_retrieval, mesh)
  build = _decode_step if step == 'decode' else _train_step
  return build(arm, mesh, batch_size)


def abstract_batch(arm: Train, mesh: Mesh, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
  """The arrays that the arm's task gives the step."""
  specs = dict(arm.task.example_specs(arm.model.chunk_len, is_open(arm.gate)))
  if arm.gate == RANDOM:
    specs['gate'] = ((), np.float32)
  place = lambda shape, dtype: _of_batch((batch_size, *shape), dtype, mesh)
  return {name: place(*shape_and_dtype) for name, shape_and_dtype in specs.items()}


def _train_step(arm: Train, mesh: Mesh, batch_size: int) -> Step:
  step = arm.compile_step(mesh)
  return Step(
    function=step.function,
    arguments=(step.state, abstract_batch(arm, mesh, batch_size)),
    parameters=_size(step.state.params),
    trained_parameters=_size(step.state.trainable),
    model_flops=step_flops(arm, step.state, batch_size),
    model_flops_masked=step_flops(arm, step.state, batch_size, count_masked=True),
  )


def _decode_step(arm: Train, mesh: Mesh, batch_size: int) -> Step:
  """One token a row, with a cache as long as the sequences that the arm is trained on."""
  open_, max_len = is_open(arm.gate), arm.task.seq_len
  model = Retro(arm.model, arm.execution.for_use())
  params = abstract_params(arm.model, open_, mesh)
  cache = _abstract_cache(model, params, mesh, batch_size, max_len, arm)
  tokens = _of_batch((batch_size,), jnp.int32, mesh)
  count = flops.decode_step_flops(
    arm.model,
    batch_size=batch_size,
    cache_len=max_len,
    num_neighbours=arm.task.num_neighbours,
    is_open=open_,
  ).total
  return Step(
    function=compile_step(model, open_),
    arguments=(params, cache, tokens),
    parameters=_size(params),
    trained_parameters=0,
    model_flops=count,
    model_flops_masked=count,
  )


def _abstract_cache(
  model: Retro, params: Params, mesh: Mesh, batch_size: int, max_len: int, arm: Train
) -> Cache:
  C = arm.model.chunk_len
  int32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
  neighbours = (batch_size, 1, arm.task.num_neighbours, 2 * C)
  with_cache = lambda params, tokens, lengths, neighbours: model.apply(
    {'params': params},
    tokens,
    lengths,
    neighbours if is_open(arm.gate) else None,
    max_len=max_len,
    gate=float(is_open(arm.gate)),
    method=prefill,
  )
  cache, _ = jax.eval_shape(
    with_cache, params, int32(batch_size, C), int32(batch_size), int32(*neighbours)
  )

  def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    if len(x.shape) == 4:  # keys and values, [B, U, G, A], are the only such arrays
      spec = to_spec(('batch', None, 'act_kv_heads', None), x.shape, mesh)
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
    return _of_batch(x.shape, x.dtype, mesh)

  return jax.tree.map(place, cache)


def _of_batch(shape: tuple[int, ...], dtype: Any, mesh: Mesh) -> jax.ShapeDtypeStruct:
  """An array with a row for each sequence, or a scalar."""
  sharding = batch_sharding(shape, mesh) if shape else NamedSharding(mesh, PartitionSpec())
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _size(tree: Any) -> int:
  return sum(x.size for x in jax.tree.leaves(tree))

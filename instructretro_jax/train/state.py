"""The state of training before its first step: what it will be, and made where it belongs."""

from __future__ import annotations

from collections.abc import Mapping
import functools
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
import optax

from instructretro_jax.array_types import Array, Params
from instructretro_jax.model.config import RetroConfig
from instructretro_jax.model.execution import Execution
from instructretro_jax.model.layer_groups import layer_paths, unstack_layers
from instructretro_jax.model.param_groups import has_retrieval
from instructretro_jax.model.retro import Retro
from instructretro_jax.model.sharding import param_shardings
from instructretro_jax.train.multipliers import split_trainable
from instructretro_jax.train.optimizer import Optimizer
from instructretro_jax.train.step import TrainState


def init_params(
  config: RetroConfig, seed: int, with_retrieval: bool, *, scan_layers: bool = False
) -> Params:
  """Fresh parameters, boxed with their logical axes; the decoder's alone without retrieval."""
  tokens = jnp.zeros((1, config.chunk_len), jnp.int32)
  neighbours = jnp.zeros((1, 1, 1, 2 * config.chunk_len), jnp.int32)
  model, key = Retro(config, Execution(scan_layers=scan_layers)), jax.random.key(seed)
  if not with_retrieval:
    return model.init(key, tokens, gate=0)['params']
  mask = jnp.ones(neighbours.shape, bool)
  return model.init(key, tokens, jnp.ones_like(tokens), neighbours, mask)['params']


def abstract_params(
  config: RetroConfig,
  with_retrieval: bool,
  mesh: Mesh | AbstractMesh,
  *,
  scan_layers: bool = False,
) -> Params:
  """Shapes, dtypes and shardings of the parameters on a mesh, which may be abstract."""
  boxed = _boxed_params(config, with_retrieval, scan_layers)
  place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  return jax.tree.map(place, nn.unbox(boxed), param_shardings(boxed, mesh))


def param_axes(config: RetroConfig, with_retrieval: bool) -> list[tuple[str, int]]:
  """Logical names of the axes of all parameters, with every size that each has."""
  boxed = _boxed_params(config, with_retrieval, True)
  is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)
  boxes = jax.tree.leaves(boxed, is_leaf=is_box)
  return sorted({axis for box in boxes for axis in zip(box.names, box.value.shape) if axis[0]})


@functools.lru_cache(maxsize=16)
def _boxed_params(config: RetroConfig, with_retrieval: bool, scan_layers: bool) -> Params:
  """As `init_params`, abstract; traced once for the several that ask."""
  init = functools.partial(init_params, config, 0, with_retrieval, scan_layers=scan_layers)
  return jax.eval_shape(init)


def fresh_params(config: RetroConfig, seed: int, abstract: Params) -> Params:
  """Parameters drawn from the seed, each on the devices that `abstract_params` gives it."""
  with_retrieval = has_retrieval(abstract)
  init = lambda: nn.unbox(init_params(config, seed, with_retrieval))
  return jax.jit(init, out_shardings=shardings_of(abstract))()


def abstract_state(
  params: Params, config: Optimizer, num_steps: int, warmup_of: int | None = None
) -> tuple[TrainState, optax.GradientTransformation]:
  """Shapes, dtypes and shardings of the state with these abstract parameters, and its optimizer.

  The numbers of steps are those of `Optimizer.schedule`. Moments lie as their parameters do;
  counters are whole on every device.
  """
  trainable, frozen = split_trainable(params, config.lr_multipliers)
  optimizer = config.make(num_steps, trainable, warmup_of)
  mesh = next(iter(trainable.values())).sharding.mesh
  everywhere = NamedSharding(mesh, PartitionSpec())
  whole = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere)
  like = lambda x, param: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=param.sharding)
  opt_state = optax.tree_utils.tree_map_params(
    optimizer, like, jax.eval_shape(optimizer.init, trainable), trainable,
    transform_non_params=whole,
  )  # fmt: skip
  step = whole(jax.ShapeDtypeStruct((), jnp.int32))
  return TrainState(step, trainable, frozen, opt_state), optimizer


def first_state(
  params: Params, optimizer: optax.GradientTransformation, abstract: TrainState
) -> TrainState:
  """The state at step 0, with these parameters, on the devices that `abstract` says."""
  flat = traverse_util.flatten_dict(params, sep='/')
  trainable = {path: flat[path] for path in abstract.trainable}
  frozen = {path: flat[path] for path in abstract.frozen}
  init = lambda trainable: (jnp.zeros((), jnp.int32), optimizer.init(trainable))
  shardings = shardings_of((abstract.step, abstract.opt_state))
  step, opt_state = jax.jit(init, out_shardings=shardings)(trainable)
  return TrainState(step, trainable, frozen, opt_state)


def relaid(
  state: TrainState, abstract: TrainState, config: RetroConfig, scan_layers: bool
) -> TrainState:
  """A state in another form of its layers (model/layer_groups.py), one by one or stacked.

  Args:
    abstract: the state to be.
    scan_layers: whether `state` holds repeating layers stacked.

  Moments of parameters that are trained in one form only, as frozen layers are in a stack whose
  others train, are 0.
  """

  def relay(flat: dict[str, Array], like: Mapping[str, Any]) -> dict[str, Array]:
    nested = traverse_util.unflatten_dict(flat, sep='/')
    single = traverse_util.flatten_dict(unstack_layers(nested, config, scan_layers), sep='/')
    made, dtype = {}, next(iter(flat.values())).dtype
    for path, x in like.items():
      names = layer_paths(path, x.shape)
      if names == (path,):
        made[path] = single.get(path, jnp.zeros(x.shape, dtype))
      else:
        zeros = jnp.zeros(x.shape[1:], dtype)
        made[path] = jnp.stack([single.get(name, zeros) for name in names])
    return made

  def convert(state: TrainState) -> TrainState:
    params = {**state.trainable, **state.frozen}
    of_params = lambda x: isinstance(x, dict) and x.keys() == state.trainable.keys()
    opt_state = jax.tree.map(
      lambda x: relay(x, abstract.trainable) if of_params(x) else x,
      state.opt_state,
      is_leaf=of_params,
    )
    trainable, frozen = (relay(params, part) for part in (abstract.trainable, abstract.frozen))
    return TrainState(state.step, trainable, frozen, opt_state)

  return jax.jit(convert, out_shardings=shardings_of(abstract))(state)


def shardings_of(abstract: Any) -> Any:
  """The sharding of every array of a tree."""
  return jax.tree.map(lambda x: x.sharding, abstract)

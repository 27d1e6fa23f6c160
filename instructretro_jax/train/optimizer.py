"""AdamW with a table that gives each group of parameters its rate; rate 0 freezes the group."""

from __future__ import annotations

import dataclasses
import re

from flax import traverse_util
import jax
import optax

from instructretro_jax.array_types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
  """AdamW (Loshchilov & Hutter 2019), clipped, with linear warm-up and cosine decay.

  A `final_lr_fraction` of 1 keeps the rate constant.

  Attributes:
    lr_multipliers: (pattern, multiplier) pairs; the first pattern found in the path of a parameter
      multiplies its learning rate. 0 freezes it: no gradient, no moments, no decay. A parameter
      that no pattern fits has 1.
  """

  learning_rate: float
  final_lr_fraction: float = 0.1  # of the learning rate, at the last step
  warmup_fraction: float = 0.05  # of the steps; 0 begins at the full rate
  decay_fraction: float = 1.0  # of the steps, warm-up included; behind it, the final rate
  b1: float = 0.9
  b2: float = 0.95
  weight_decay: float = 0.1  # not of norms, biases and embeddings
  clip_norm: float = 1.0
  moments_dtype: str = 'float32'  # of both moments at rest; 'bfloat16' saves 4 bytes a parameter
  lr_multipliers: tuple[tuple[str, float], ...] = ()


def lr_multiplier(path: str, lr_multipliers: tuple[tuple[str, float], ...]) -> float:
  """The multiplier of the learning rate of one parameter."""
  return next((rate for pattern, rate in lr_multipliers if re.search(pattern, path)), 1.0)


def split_trainable(
  params: Params, lr_multipliers: tuple[tuple[str, float], ...]
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """Flat trainable and frozen parameters by path. Raises ValueError if nothing would train."""
  flat = traverse_util.flatten_dict(params, sep='/')
  trainable = {path: x for path, x in flat.items() if lr_multiplier(path, lr_multipliers) != 0}
  if not trainable:
    raise ValueError(f'lr_multipliers {lr_multipliers} freeze every parameter')
  return trainable, {path: x for path, x in flat.items() if path not in trainable}


def join_params(trainable: dict[str, jax.Array], frozen: dict[str, jax.Array]) -> Params:
  """The inverse of `split_trainable`."""
  return traverse_util.unflatten_dict({**trainable, **frozen}, sep='/')


def schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
  """Learning rate by step."""
  warmup_steps = max(1, round(config.warmup_fraction * num_steps)) if config.warmup_fraction else 0
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=config.learning_rate,
    warmup_steps=warmup_steps,
    decay_steps=max(warmup_steps + 1, round(config.decay_fraction * num_steps)),
    end_value=config.final_lr_fraction * config.learning_rate,
  )


def is_decayed(path: str) -> bool:
  """Whether weight decay acts on a parameter: not on norms, biases and embeddings."""
  return 'embedding' not in path and path.rpartition('/')[2] not in ('scale', 'bias')


def _stored_as(adam: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
  """Adam whose moments are float32 while they are used and `dtype` between steps."""
  if dtype == 'float32':
    return adam
  cast = lambda state, to: state._replace(
    mu=optax.tree_utils.tree_cast(state.mu, to), nu=optax.tree_utils.tree_cast(state.nu, to)
  )

  def update(grads, state, params=None):
    updates, state = adam.update(grads, cast(state, 'float32'), params)
    return updates, cast(state, dtype)

  return optax.GradientTransformation(lambda params: cast(adam.init(params), dtype), update)


def make_optimizer(
  config: OptimizerConfig, num_steps: int, trainable: dict[str, jax.Array]
) -> optax.GradientTransformation:
  """The optimiser of flat trainable parameters."""
  rates = {path: lr_multiplier(path, config.lr_multipliers) for path in trainable}
  decayed = {path: is_decayed(path) for path in trainable}
  by_group = optax.stateless(
    lambda updates, _: {path: update * rates[path] for path, update in updates.items()}
  )
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    _stored_as(optax.scale_by_adam(config.b1, config.b2), config.moments_dtype),
    optax.add_decayed_weights(config.weight_decay, mask=decayed),
    by_group,
    optax.scale_by_learning_rate(schedule(config, num_steps)),
  )

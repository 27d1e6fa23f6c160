"""Optimizers with a table that gives each group of parameters its learning rate; 0 freezes it."""

from __future__ import annotations

import abc
from collections.abc import Mapping
import dataclasses
import importlib
import math
from typing import Any

import jax
import numpy as np
import optax

from instructretro_jax.model.config import require_in
from instructretro_jax.train.multipliers import Multipliers, check_multipliers, factors_of
from instructretro_jax.train.schedules import COSINE, Schedule

# the relative rounding of bfloat16 is half a unit in its last place, and where a running mean moves
# by less in a step, it stays
_BFLOAT16_ROUNDING = 2.0**-8
_MOST_STUCK = 0.1  # of a moment: updates are then too small by 5 % at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer(abc.ABC):
  """Clipped gradients, turned into updates by a subclass, at the rates of a schedule.

  Attributes:
    learning_rate: the highest.
    final_lr_fraction: of the learning rate, at the last step; 1 keeps the rate constant.
    warmup_fraction: of the steps, over which the rate rises; 0 begins at the full rate.
    decay_fraction: of the steps, warm-up included; behind it, the final rate.
    lr_schedule: how the rate falls, 'cosine' or 'wsd' (see train/schedules.py). An arm with 'wsd',
      or a constant rate, can be trained longer after it has ended.
    cooldown_fraction: of the steps, over which 'wsd' falls.
    lr_multipliers: (group, multiplier) pairs, a group as in model/param_groups.py (a name such as
      'retrieval', or a pattern); the first that a parameter is in multiplies its learning rate. 0
      freezes it: no gradient, no moments, no decay. A parameter that is in none has 1.
  """

  learning_rate: float
  final_lr_fraction: float = 0.1
  warmup_fraction: float = 0.05
  decay_fraction: float = 1.0
  lr_schedule: str = COSINE
  cooldown_fraction: float = 0.2
  clip_norm: float = 1.0
  lr_multipliers: Multipliers = ()

  def __post_init__(self):
    check_multipliers(self.lr_multipliers)
    fractions = ('final_lr_fraction', 'warmup_fraction', 'decay_fraction', 'cooldown_fraction')
    for name in fractions:
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f'{name}={getattr(self, name)} is not between 0 and 1')
    for name in ('learning_rate', 'clip_norm'):
      if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
        raise ValueError(f'{name}={getattr(self, name)} is not a number above 0')
    self._rates()  # refuses fractions that do not go together

  @abc.abstractmethod
  def transforms(
    self, trainable: Mapping[str, jax.Array]
  ) -> tuple[optax.GradientTransformation, ...]:
    """From clipped gradients to updates, one after the other, before the learning rate."""

  def make(
    self, num_steps: int, trainable: Mapping[str, jax.Array], warmup_of: int | None = None
  ) -> optax.GradientTransformation:
    """The optimizer of flat trainable parameters; see `schedule`."""
    factors = {path: factors_of(path, x, self.lr_multipliers) for path, x in trainable.items()}
    scale = lambda by: optax.stateless(
      lambda updates, _: {path: x * by[path] if path in by else x for path, x in updates.items()}
    )
    # frozen layers of a stack, which have gradients, count for nothing in the norm
    frozen = {path: factor != 0 for path, factor in factors.items() if not np.all(factor)}
    return optax.chain(
      scale(frozen),
      optax.clip_by_global_norm(self.clip_norm),
      *self.transforms(trainable),
      scale(factors),
      optax.scale_by_learning_rate(self.schedule(num_steps, warmup_of)),
    )

  def schedule(self, num_steps: int, warmup_of: int | None = None) -> optax.Schedule:
    """Learning rate by step, counted from 0; the arguments are those of `Schedule.over`."""
    return self._rates().over(num_steps, warmup_of)

  @property
  def is_open_ended(self) -> bool:
    """Whether an arm that has ended can be trained longer."""
    return self._rates().is_open_ended

  def _rates(self) -> Schedule:
    return Schedule(
      peak=self.learning_rate,
      final_fraction=self.final_lr_fraction,
      warmup_fraction=self.warmup_fraction,
      decay_fraction=self.decay_fraction,
      kind=self.lr_schedule,
      cooldown_fraction=self.cooldown_fraction,
    )

  def with_multiplier(self, group: str, multiplier: float) -> Optimizer:
    """The same with a multiplier that comes before all others."""
    others = tuple(m for m in self.lr_multipliers if m != (group, multiplier))
    return dataclasses.replace(self, lr_multipliers=((group, multiplier), *others))


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
  """AdamW (Loshchilov & Hutter 2019).

  Attributes:
    weight_decay: not of norms, biases and embeddings.
    moments_dtype: of both moments at rest; 'bfloat16' saves 4 bytes a parameter. A moment of decay
      rate b then stays too high by up to 2^-8 / (1 - b) of itself when gradients fall
      (docs/numerics.md), so rates at which that is above a tenth are refused.
  """

  b1: float = 0.9
  b2: float = 0.95
  weight_decay: float = 0.1
  moments_dtype: str = 'float32'

  def __post_init__(self):
    super().__post_init__()
    require_in('moments_dtype', self.moments_dtype, ('float32', 'bfloat16'))
    for name in ('b1', 'b2'):
      rate = getattr(self, name)
      if not 0 <= rate < 1:
        raise ValueError(f'{name}={rate} is not from 0 to below 1')
      stuck = _BFLOAT16_ROUNDING / (1 - rate)
      if self.moments_dtype == 'bfloat16' and stuck > _MOST_STUCK:
        raise ValueError(
          f'{name}={rate} with moments_dtype=bfloat16: its moment can stay {stuck:.0%} too high; '
          f"give {1 - _BFLOAT16_ROUNDING / _MOST_STUCK:.2f} or less, or moments_dtype='float32'"
        )

  def transforms(
    self, trainable: Mapping[str, jax.Array]
  ) -> tuple[optax.GradientTransformation, ...]:
    """Adam, then the decay of weights."""
    decayed = {path: is_decayed(path) for path in trainable}
    return (
      _stored_as(optax.scale_by_adam(self.b1, self.b2), self.moments_dtype),
      optax.add_decayed_weights(self.weight_decay, mask=decayed),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromOptax(Optimizer):
  """Any transformation of gradients by the name of the function that makes it.

  Attributes:
    factory: importable, such as 'optax.scale_by_lion': what it makes comes before the learning
      rate, so the `scale_by_*` functions are meant and not `optax.lion`.
    arguments: its keyword arguments, as pairs of name and value.
    weight_decay: not of norms, biases and embeddings.
  """

  factory: str
  arguments: tuple[tuple[str, Any], ...] = ()
  weight_decay: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    self._make()  # a name that is wrong is found here, and not after the data has been read

  def transforms(
    self, trainable: Mapping[str, jax.Array]
  ) -> tuple[optax.GradientTransformation, ...]:
    """What the factory makes, then the decay of weights."""
    decayed = {path: is_decayed(path) for path in trainable}
    return (self._make(), optax.add_decayed_weights(self.weight_decay, mask=decayed))

  def _make(self) -> optax.GradientTransformation:
    module, _, name = self.factory.rpartition('.')
    try:
      made = getattr(importlib.import_module(module), name)(**dict(self.arguments))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
      raise ValueError(f'the optimizer {self.factory}{self.arguments}: {error}') from error
    if not isinstance(made, optax.GradientTransformation):
      raise ValueError(f'{self.factory} makes no optax.GradientTransformation but {made!r}')
    return made


def is_decayed(path: str) -> bool:
  """Whether weight decay acts on a parameter: not on norms, biases of any kind and embeddings."""
  parent, _, name = path.rpartition('/')
  return not ('embedding' in path or name in ('scale', 'bias') or parent.endswith('_bias'))


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

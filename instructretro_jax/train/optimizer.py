"""Optimizers with a table that gives each group of parameters its learning rate; 0 freezes it."""

from __future__ import annotations

import abc
from collections.abc import Mapping
import dataclasses
import importlib
import math
from typing import Any

import jax
import optax

from instructretro_jax.train.multipliers import Multipliers, check_multipliers, factors_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer(abc.ABC):
  """Clipped gradients, turned into updates by a subclass, at a rate with warm-up and cosine decay.

  Attributes:
    final_lr_fraction: of the learning rate, at the last step; 1 keeps the rate constant.
    warmup_fraction: of the steps, over which the rate rises from 0; 0 begins at the full rate.
    decay_fraction: of the steps, warm-up included; behind it, the final rate.
    lr_multipliers: (group, multiplier) pairs, a group as in model/param_groups.py (a name such as
      'retrieval', or a pattern); the first that a parameter is in multiplies its learning rate. 0
      freezes it: no gradient, no moments, no decay. A parameter that is in none has 1.
  """

  learning_rate: float
  final_lr_fraction: float = 0.1
  warmup_fraction: float = 0.05
  decay_fraction: float = 1.0
  clip_norm: float = 1.0
  lr_multipliers: Multipliers = ()

  def __post_init__(self):
    check_multipliers(self.lr_multipliers)
    for name in ('final_lr_fraction', 'warmup_fraction', 'decay_fraction'):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f'{name}={getattr(self, name)} is not between 0 and 1')
    if self.warmup_fraction > self.decay_fraction:
      raise ValueError(
        f'warmup_fraction={self.warmup_fraction} is above decay_fraction={self.decay_fraction}, '
        'which counts from the first step'
      )
    for name in ('learning_rate', 'clip_norm'):
      if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
        raise ValueError(f'{name}={getattr(self, name)} is not a number above 0')

  @abc.abstractmethod
  def transforms(
    self, trainable: Mapping[str, jax.Array]
  ) -> tuple[optax.GradientTransformation, ...]:
    """From clipped gradients to updates, one after the other, before the learning rate."""

  def make(
    self, num_steps: int, trainable: Mapping[str, jax.Array]
  ) -> optax.GradientTransformation:
    """The optimizer of flat trainable parameters."""
    factors = {path: factors_of(path, x, self.lr_multipliers) for path, x in trainable.items()}
    by_group = optax.stateless(
      lambda updates, _: {path: update * factors[path] for path, update in updates.items()}
    )
    return optax.chain(
      optax.clip_by_global_norm(self.clip_norm),
      *self.transforms(trainable),
      by_group,
      optax.scale_by_learning_rate(self.schedule(num_steps)),
    )

  def schedule(self, num_steps: int) -> optax.Schedule:
    """Learning rate by step."""
    warmup_steps = max(1, round(self.warmup_fraction * num_steps)) if self.warmup_fraction else 0
    return optax.warmup_cosine_decay_schedule(
      init_value=0.0,
      peak_value=self.learning_rate,
      warmup_steps=warmup_steps,
      decay_steps=max(warmup_steps + 1, round(self.decay_fraction * num_steps)),
      end_value=self.final_lr_fraction * self.learning_rate,
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
    moments_dtype: of both moments at rest; 'bfloat16' saves 4 bytes a parameter.
  """

  b1: float = 0.9
  b2: float = 0.95
  weight_decay: float = 0.1
  moments_dtype: str = 'float32'

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

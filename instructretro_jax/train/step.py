"""One training step as a pure function of state and batch."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from instructretro_jax.array_types import Array, Batch, Params
from instructretro_jax.model.decoder import READING
from instructretro_jax.model.layer_groups import layer_paths
from instructretro_jax.model.param_groups import part_of
from instructretro_jax.model.retro import Retro, is_open
from instructretro_jax.train.gates import RANDOM
from instructretro_jax.train.losses import token_losses, total_loss
from instructretro_jax.train.multipliers import join_params
from instructretro_jax.train.reading import reading_metrics, squares_of_layers

PART_NORM = 'grad_norm/'  # and a part of the model: a metric


@flax.struct.dataclass
class TrainState:
  """All that training changes (and the frozen parameters, which it does not)."""

  step: Array
  trainable: dict[str, Array]
  frozen: dict[str, Array]
  opt_state: optax.OptState

  @property
  def params(self) -> Params:
    """All parameters, nested."""
    return join_params(self.trainable, self.frozen)


def losses_of_batch(model: Retro, params: Params, batch: Batch, gate: float | Array) -> Array:
  """-log p of each target, [B, L] in nats; 0 where `loss_mask` is 0.

  Learned positions count as `positions` of the batch says, or through the whole row without it.
  """
  hidden_BLD, head_DV = _hidden_and_head(model, params, batch, gate)
  return token_losses(hidden_BLD, head_DV, batch['targets']) * batch['loss_mask']


def loss_of_batch(model: Retro, params: Params, batch: Batch, gate: float | Array) -> Array:
  """The sum of `losses_of_batch`, a scalar; what one takes the gradient of."""
  hidden_BLD, head_DV = _hidden_and_head(model, params, batch, gate)
  return total_loss(hidden_BLD, head_DV, batch['targets'], batch['loss_mask'])


def loss_and_reading(
  model: Retro, params: Params, batch: Batch, gate: float | Array
) -> tuple[Array, Array | None]:
  """`loss_of_batch`, and what its layers read (train/reading.py), None behind a closed gate."""
  if not is_open(gate):
    return loss_of_batch(model, params, batch, gate), None
  (hidden_BLD, head_DV), sown = _hidden_and_head(model, params, batch, gate, mutable=[READING])
  loss = total_loss(hidden_BLD, head_DV, batch['targets'], batch['loss_mask'])
  return loss, squares_of_layers(sown)


def _hidden_and_head(
  model: Retro, params: Params, batch: Batch, gate: float | Array, **collections: Any
) -> Any:
  return model.apply(
    {'params': params},
    batch['tokens'],
    batch['segments'],
    batch.get('neighbours'),
    batch.get('neighbour_mask'),
    gate=gate,
    positions_BL=batch.get('positions'),
    method='hidden_and_head',
    **collections,
  )


def make_train_step(
  model: Retro,
  optimizer: optax.GradientTransformation,
  gate: float | str,
  num_microbatches: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
  """The step to be compiled: mean loss over the masked tokens of the batch, one update.

  Args:
    gate: scale of the cross-attention, or 'random': that of each row is `gate` of the batch, [B].
    num_microbatches: parts of the batch that are computed one after the other, with gradients added
      up in float32: memory for activations falls, the update stays. Must divide the batch size.
  """

  gate_of = lambda part: part['gate'] if gate == RANDOM else gate

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
    def loss_of_part(trainable: dict[str, Array], part: Batch) -> tuple[Array, Array | None]:
      return loss_and_reading(model, join_params(trainable, state.frozen), part, gate_of(part))

    (loss, squares), grads = _sum_over_parts(
      jax.value_and_grad(loss_of_part, has_aux=True), state.trainable, batch, num_microbatches
    )
    num_targets = jnp.maximum(batch['loss_mask'].sum(), 1)
    loss, grads = jax.tree.map(lambda x: x / num_targets, (loss, grads))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    tokens = (batch['segments'] > 0).sum()  # of the whole batch, whoever read it
    metrics = {'loss': loss, 'grad_norm': optax.tree.norm(grads), 'tokens': tokens}
    metrics |= _norms_of_parts(grads)
    if squares is not None:
      metrics |= reading_metrics(squares, gate_of(batch))
    trainable = optax.apply_updates(state.trainable, updates)
    return dataclasses.replace(
      state, step=state.step + 1, trainable=trainable, opt_state=opt_state
    ), metrics

  return step


def _norms_of_parts(grads: dict[str, Array]) -> dict[str, Array]:
  """The norm of the gradient of each part of the model (model/param_groups.py) that trains."""
  parts: dict[str, list[Array]] = {}
  for path, x in grads.items():
    parts.setdefault(part_of(layer_paths(path, x.shape)[0]), []).append(x)
  return {f'{PART_NORM}{part}': optax.tree.norm(found) for part, found in sorted(parts.items())}


def _sum_over_parts(
  function: Callable[[Any, Batch], Any], trainable: Any, batch: Batch, num_parts: int
) -> Any:
  """The sum of `function` over parts of the batch, each with its rows from all devices."""
  if num_parts == 1:
    return function(trainable, batch)
  cut = lambda x: jnp.swapaxes(x.reshape(-1, num_parts, *x.shape[1:]), 0, 1)

  def add(sums: Any, part: Batch) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, sums, function(trainable, part)), None

  parts = jax.tree.map(cut, batch)
  first = jax.tree.map(lambda x: x[0], parts)
  zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(function, trainable, first))
  return jax.lax.scan(add, zeros, parts)[0]

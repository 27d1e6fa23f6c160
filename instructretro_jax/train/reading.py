"""How much of the stream comes from neighbours: metrics of a step with an open gate."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from instructretro_jax.array_types import Array, Params
from instructretro_jax.model.decoder import READING

RELATIVE_RMS = 'cross_attention/relative_rms'
GATE = 'cross_attention/gate'


def squares_of_layers(sown: Params) -> Array:
  """What the cross-attentions have sown (`SQUARES` of model/decoder.py), [X, B, 2]: X layers."""
  layers = jax.tree.leaves(sown.get(READING, {}))
  return jnp.concatenate([x.reshape(-1, *x.shape[-2:]) for x in layers])


def reading_metrics(squares_XB2: Array, gate: float | Array) -> dict[str, Array]:
  """The root mean square of what a cross-attention adds to the stream, relative to the stream's.

  A mean over layers, of all positions of the batch. Beside it the gate that what is added has been
  multiplied with, as a mean over rows.
  """
  squares_X2 = squares_XB2.sum(axis=1)
  added_X, before_X = squares_X2[:, 0], squares_X2[:, 1]
  relative_X = jnp.sqrt(added_X / jnp.maximum(before_X, jnp.finfo(before_X.dtype).tiny))
  return {RELATIVE_RMS: relative_X.mean(), GATE: jnp.asarray(gate, jnp.float32).mean()}

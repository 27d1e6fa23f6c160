"""Attention: the module that owns its projections."""

from __future__ import annotations

from typing import NamedTuple

from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from instructretro_jax.array_types import Array
from instructretro_jax.model.config import DecoderConfig
from instructretro_jax.model.kernels import attend, attend_causally
from instructretro_jax.model.layers import Linear, Norm
from instructretro_jax.model.rotary import apply_rotary


class KeyValues(NamedTuple):
  """What attention reads: keys (rotated where the model rotates) and values."""

  k_BUGA: Array
  v_BUGA: Array


class Attention(nn.Module):
  """Multi-head attention with its four projections.

  A call computes everything; a decoder that keeps keys and values calls the three steps.

  Attributes:
    kv_heads: G; only self-attention of the decoder uses fewer than H.
    value_shift: 1 reads the value one position after the key, zero after the last.
  """

  config: DecoderConfig
  kv_heads: int
  value_shift: int = 0

  def setup(self):
    c = self.config
    project = lambda heads, axis: Linear(
      (heads, c.head_width), ('embed', axis, 'head'), c, has_bias=c.qkv_bias
    )
    kv_axis = 'heads' if self.kv_heads == c.num_heads else 'kv_heads'
    self.query = project(c.num_heads, 'heads')
    self.key = project(self.kv_heads, kv_axis)
    self.value = project(self.kv_heads, kv_axis)
    if c.qk_norm:
      self.query_norm, self.key_norm = Norm(c), Norm(c)
    std = c.init_std / (2 * c.num_layers) ** 0.5
    self.output = Linear((c.width,), ('heads', 'head', 'embed'), c, num_in=2, init_std=std)

  def __call__(
    self,
    x_BTD: Array,
    memory_BUD: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    rotary_positions: tuple[Array, Array] | None = None,
  ) -> Array:
    """Reads `memory_BUD` at the positions of `x_BTD`.

    Args:
      rotary_positions: positions of the queries and of the keys, or None for no rotation.
    """
    q_positions, k_positions = rotary_positions or (None, None)
    keys_values = self.keys_values(memory_BUD, k_positions)
    return self.read(self.queries(x_BTD, q_positions), keys_values, mask, bias)

  def queries(self, x_BTD: Array, positions: Array | None = None) -> Array:
    """Queries, [B, T, H, A]; rotated if positions are given."""
    q = self.query(x_BTD)
    q = self._normalize(self.query_norm, q) if self.config.qk_norm else q
    return checkpoint_name(self._rotate(q, positions), 'query')

  def keys_values(
    self, memory_BUD: Array, positions: Array | None = None, values_per_memory: int = 1
  ) -> KeyValues:
    """Keys and values of a memory; keys are rotated if positions are given.

    Args:
      values_per_memory: texts that the memory strings together; a value shift stays inside each.
    """
    k, v = self.key(memory_BUD), self.value(memory_BUD)
    k = self._normalize(self.key_norm, k) if self.config.qk_norm else k
    k = checkpoint_name(self._rotate(k, positions), 'key')
    if self.value_shift:
      B, U, G, A = v.shape
      texts = v.reshape(B, values_per_memory, U // values_per_memory, G, A)
      shifted = jnp.pad(texts[:, :, 1:], ((0, 0), (0, 0), (0, 1), (0, 0), (0, 0)))
      v = shifted.reshape(B, U, G, A)
    return KeyValues(k, v)

  def read(
    self,
    q_BTHA: Array,
    keys_values: KeyValues,
    mask: Array | None = None,
    bias: Array | None = None,
  ) -> Array:
    """What the queries read, projected to the width of the stream: [B, T, D]."""
    return self.output(checkpoint_name(attend(q_BTHA, *keys_values, mask, bias), 'attended'))

  def read_causally(
    self, q_BLHA: Array, keys_values: KeyValues, segments_BL: Array | None, kernel: str
  ) -> Array:
    """As `read`, of the same and earlier positions of the same segment, by an attention kernel."""
    read_BLHA = attend_causally(q_BLHA, *keys_values, segments_BL, kernel)
    return self.output(checkpoint_name(read_BLHA, 'attended'))

  def _normalize(self, norm: Norm, x_BTHA: Array) -> Array:
    if not self.config.qk_norm_across_heads:
      return norm(x_BTHA)
    return norm(x_BTHA.reshape(*x_BTHA.shape[:-2], -1)).reshape(x_BTHA.shape)

  def _rotate(self, x_BTHA: Array, positions: Array | None) -> Array:
    c = self.config
    if positions is None:
      return x_BTHA
    return apply_rotary(
      x_BTHA,
      positions,
      fraction=c.rotary_fraction,
      base=c.rotary_base,
      interleaved=c.rotary_interleaved,
      scaling=c.rotary_scaling,
    )

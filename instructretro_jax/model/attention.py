"""Attention: the mathematics, and the module that owns its projections."""

from __future__ import annotations

from flax import linen as nn
import jax
import jax.numpy as jnp

from instructretro_jax.array_types import Array
from instructretro_jax.model.config import DecoderConfig
from instructretro_jax.model.layers import Linear


def attend(
  q_BTHA: Array, k_BUGA: Array, v_BUGA: Array, mask: Array | None = None, bias: Array | None = None
) -> Array:
  """Softmax attention; the softmax is in float32 at least.

  Args:
    q_BTHA: queries; H is a multiple of the number G of key/value heads.
    k_BUGA: keys.
    v_BUGA: values.
    mask: True where attending is allowed, broadcastable to [B, H, T, U]. A row that may attend
      nothing reads the plain mean of all values; callers that mind drop it.
    bias: added to the scores, broadcastable to [B, H, T, U].

  Returns: [B, T, H, A].
  """
  B, T, H, A = q_BTHA.shape
  G, U = k_BUGA.shape[2], k_BUGA.shape[1]
  dtype = jnp.promote_types(q_BTHA.dtype, jnp.float32)
  q = (q_BTHA * A**-0.5).reshape(B, T, G, H // G, A)
  scores = jnp.einsum('btgia,buga->bgitu', q, k_BUGA, preferred_element_type=dtype)
  scores_BHTU = scores.reshape(B, H, T, U)
  if bias is not None:
    scores_BHTU += bias.astype(dtype)
  if mask is not None:
    scores_BHTU = jnp.where(mask, scores_BHTU, jnp.finfo(dtype).min)
  weights = jax.nn.softmax(scores_BHTU, axis=-1).astype(v_BUGA.dtype)
  read = jnp.einsum('bgitu,buga->btgia', weights.reshape(B, G, H // G, T, U), v_BUGA)
  return read.reshape(B, T, H, A)


def rotate(
  x_BTHA: Array,
  positions_T: Array,
  *,
  fraction: float = 1.0,
  base: float = 10_000.0,
  interleaved: bool = False,
) -> Array:
  """Rotary position embedding (Su et al. 2021) on the first `fraction` of the head width.

  Channel i is paired with i + half (or 2i with 2i + 1 if interleaved); angles are in float32.
  """
  rotary_width = int(x_BTHA.shape[-1] * fraction)
  half = rotary_width // 2
  dtype = jnp.promote_types(x_BTHA.dtype, jnp.float32)
  frequency = base ** (-jnp.arange(half, dtype=dtype) / half)
  angle = positions_T.astype(dtype)[:, None] * frequency[None, :]
  cos = jnp.cos(angle)[None, :, None, :].astype(x_BTHA.dtype)
  sin = jnp.sin(angle)[None, :, None, :].astype(x_BTHA.dtype)
  turning, rest = x_BTHA[..., :rotary_width], x_BTHA[..., rotary_width:]
  if interleaved:
    a, b = turning[..., 0::2], turning[..., 1::2]
    turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turning.shape)
  else:
    a, b = turning[..., :half], turning[..., half:]
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return jnp.concatenate([turned, rest], axis=-1)


def causal_mask(segments_BL: Array | None, length: int) -> Array:
  """Mask [B or 1, 1, L, L]: earlier or same position, and the same segment where given."""
  mask_11LL = jnp.tril(jnp.ones((length, length), bool))[None, None]
  if segments_BL is None:
    return mask_11LL
  return mask_11LL & (segments_BL[:, None, :, None] == segments_BL[:, None, None, :])


class Attention(nn.Module):
  """Multi-head attention with its four projections.

  Attributes:
    kv_heads: G; only self-attention of the decoder uses fewer than H.
    value_shift: 1 reads the value one position after the key, zero after the last.
  """

  config: DecoderConfig
  kv_heads: int
  value_shift: int = 0

  @nn.compact
  def __call__(
    self,
    x_BTD: Array,
    memory_BUD: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    rotary_positions: tuple[Array, Array] | None = None,
    values_per_memory: int = 1,
  ) -> Array:
    """Reads `memory_BUD` at the positions of `x_BTD`.

    Args:
      rotary_positions: positions [T] of the queries and [U] of the keys, or None for no rotation.
      values_per_memory: texts that the memory strings together; a value shift stays inside each.
    """
    c, heads, width = self.config, self.config.num_heads, self.config.head_width
    project = lambda name, n: Linear(
      (n, width), ('embed', 'heads' if n == heads else 'kv_heads', 'head'), c, name=name
    )
    q = project('query', heads)(x_BTD)
    k = project('key', self.kv_heads)(memory_BUD)
    v = project('value', self.kv_heads)(memory_BUD)
    if self.value_shift:
      B, U, G, A = v.shape
      texts = v.reshape(B, values_per_memory, U // values_per_memory, G, A)
      shifted = jnp.pad(texts[:, :, 1:], ((0, 0), (0, 0), (0, 1), (0, 0), (0, 0)))
      v = shifted.reshape(B, U, G, A)
    if rotary_positions is not None:
      turn = dict(fraction=c.rotary_fraction, base=c.rotary_base, interleaved=c.rotary_interleaved)
      q = rotate(q, rotary_positions[0], **turn)
      k = rotate(k, rotary_positions[1], **turn)
    read_BTHA = attend(q, k, v, mask, bias)
    std = c.init_std / (2 * c.num_layers) ** 0.5
    return Linear((c.width,), ('heads', 'head', 'embed'), c, num_in=2, init_std=std, name='output')(
      read_BTHA
    )

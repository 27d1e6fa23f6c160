"""The neighbour encoder: a small bidirectional transformer conditioned on the querying chunk."""

from __future__ import annotations

from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from instructretro_jax.array_types import Array
from instructretro_jax.model.attention import Attention
from instructretro_jax.model.config import RetroConfig
from instructretro_jax.model.layers import FeedForward, Norm
from instructretro_jax.model.remat import rematerialised

MAX_OFFSET = 32  # farther offsets share the outermost bias


class RelativeBias(nn.Module):
  """A learned score per head and clipped offset (key position less query position), from 0."""

  num_heads: int

  @nn.compact
  def __call__(self, length: int) -> Array:
    table = self.param(
      'table',
      nn.with_logical_partitioning(nn.initializers.zeros, ('heads', 'offset')),
      (self.num_heads, 2 * MAX_OFFSET + 1),
    )
    position = jnp.arange(length)
    offset = jnp.clip(position[None, :] - position[:, None], -MAX_OFFSET, MAX_OFFSET)
    return table[:, offset + MAX_OFFSET][None]


class EncoderLayer(nn.Module):
  """Self-attention within a neighbour, cross-attention to the chunk (first layer only), MLP."""

  config: RetroConfig
  is_first: bool

  @nn.compact
  def __call__(
    self,
    x_ZRE: Array,
    chunk_XCD: Array,
    mask_ZRR: Array | None,
    chunk_mask_XC: Array | None,
  ) -> Array:
    """Z = B * N * K neighbours, X = B * N chunks; rows of a chunk's neighbours are adjacent."""
    c, stack = self.config, self.config.encoder_stack
    Z, R, E = x_ZRE.shape
    X = chunk_XCD.shape[0]
    heads = stack.num_heads
    h = Norm(stack, name='attention_norm')(x_ZRE)
    positions = (jnp.arange(R), jnp.arange(R)) if c.encoder_rotary else None
    bias = None
    if c.encoder_relative_bias and self.is_first:
      bias = RelativeBias(heads, name='relative_bias')(R)
    x_ZRE += Attention(stack, heads, name='attention')(
      h,
      h,
      mask=None if mask_ZRR is None else mask_ZRR[:, None],
      bias=bias,
      rotary_positions=positions,
    )
    x_ZRE = checkpoint_name(x_ZRE, 'stream')
    if self.is_first:
      h = Norm(stack, name='chunk_attention_norm')(x_ZRE)
      read = Attention(stack, heads, name='chunk_attention')(
        h.reshape(X, -1, E),
        chunk_XCD,
        mask=None if chunk_mask_XC is None else chunk_mask_XC[:, None, None, :],
      ).reshape(Z, R, E)
      residual = h if c.encoder_residual == 'normed' else x_ZRE
      x_ZRE = checkpoint_name(read + residual, 'stream')
    return x_ZRE + FeedForward(stack, stack.ff_width, name='mlp')(x_ZRE)


class NeighbourEncoder(nn.Module):
  """Encodes every neighbour in the light of the chunk that retrieved it; no norm at its end."""

  config: RetroConfig
  remat: str = 'none'

  @nn.compact
  def __call__(
    self,
    x_BNKRE: Array,
    chunks_BNCD: Array,
    mask_BNKRR: Array | None,
    chunk_mask_BNC: Array | None,
  ) -> Array:
    """Returns the encoded neighbours, [B, N, K, R, E].

    Args:
      mask_BNKRR: which tokens of a neighbour each of its tokens may attend; any axis may be 1.
      chunk_mask_BNC: real tokens of each chunk.
    """
    B, N, K, R, E = x_BNKRE.shape
    C, D = chunks_BNCD.shape[2:]
    x_ZRE = x_BNKRE.reshape(B * N * K, R, E)
    chunk_XCD = chunks_BNCD.reshape(B * N, C, D)
    mask_ZRR = None
    if mask_BNKRR is not None:
      rows = (B, N, K, *mask_BNKRR.shape[3:])
      mask_ZRR = jnp.broadcast_to(mask_BNKRR, rows).reshape(B * N * K, *rows[3:])
    chunk_mask_XC = None if chunk_mask_BNC is None else chunk_mask_BNC.reshape(-1, C)
    layer = rematerialised(EncoderLayer, self.remat)
    for n in range(self.config.encoder_layers):
      x_ZRE = layer(self.config, n == 0, name=f'layer_{n}')(
        x_ZRE, chunk_XCD, mask_ZRR, chunk_mask_XC
      )
    return x_ZRE.reshape(B, N, K, R, E)

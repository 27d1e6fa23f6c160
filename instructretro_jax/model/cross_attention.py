"""Chunked cross-attention: each chunk of the sequence reads the neighbours of the one before it."""

from __future__ import annotations

from flax import linen as nn
import jax.numpy as jnp

from instructretro_jax.array_types import Array
from instructretro_jax.model.attention import Attention
from instructretro_jax.model.config import RetroConfig
from instructretro_jax.model.layers import Norm


def first_chunk_len(length: int, chunk_len: int) -> int:
  """Tokens of the first chunk: chunks are aligned with the end, so only the first may be short."""
  return (length - 1) % chunk_len + 1


def split_chunks(h_BLX: Array, chunk_len: int) -> Array:
  """Cuts a sequence into its chunks, [B, N, C, ...]; a short first chunk is zero-padded behind."""
  B, L = h_BLX.shape[:2]
  first = first_chunk_len(L, chunk_len)
  gap = jnp.zeros((B, chunk_len - first, *h_BLX.shape[2:]), h_BLX.dtype)
  whole = jnp.concatenate([h_BLX[:, :first], gap, h_BLX[:, first:]], axis=1)
  return whole.reshape(B, -1, chunk_len, *h_BLX.shape[2:])


def attending_chunks(h_BLX: Array, chunk_len: int) -> Array:
  """Groups positions by the chunk whose neighbours they may read, [B, N, C, ...].

  A position may read the neighbours of chunk n once chunk n is complete, so group n starts at
  the last token of chunk n (Borgeaud et al. 2022, section 2.4). The tail is zero padding.
  """
  B, L = h_BLX.shape[:2]
  skip = first_chunk_len(L, chunk_len) - 1
  tail = jnp.zeros((B, chunk_len - 1, *h_BLX.shape[2:]), h_BLX.dtype)
  shifted = jnp.concatenate([h_BLX[:, skip:], tail], axis=1)
  return shifted.reshape(B, -1, chunk_len, *h_BLX.shape[2:])


def rejoin_chunks(h_BNCD: Array, length: int) -> Array:
  """The inverse of `attending_chunks`: [B, L, D], zero where no neighbours may be read yet."""
  B, N, C, D = h_BNCD.shape
  skip = first_chunk_len(length, C) - 1
  lead = jnp.zeros((B, skip, D), h_BNCD.dtype)
  return jnp.concatenate([lead, h_BNCD.reshape(B, N * C, D)], axis=1)[:, :length]


def readable(segments_BL: Array, chunk_len: int) -> Array:
  """Where a position belongs to the document of the chunk whose neighbours it reads, [B, N, C]."""
  chunk_segment_BN = split_chunks(segments_BL, chunk_len)[:, :, 0]
  return attending_chunks(segments_BL, chunk_len) == chunk_segment_BN[:, :, None]


class ChunkedCrossAttention(nn.Module):
  """Adds to each position what it reads from the encoded neighbours.

  Without masks all K * R neighbour tokens share one softmax, as in the reference. Positions before
  the end of the first chunk receive exactly zero, not even a bias.
  """

  config: RetroConfig

  def setup(self):
    c = self.config
    self.norm = Norm(c.decoder)
    self.attention = Attention(c.decoder, c.decoder.num_heads, value_shift=c.value_shift)

  def normalize(self, x_BLD: Array) -> Array:
    """The normed stream: what is read with, and what the encoder is conditioned on."""
    return self.norm(x_BLD)

  def __call__(
    self,
    h_BLD: Array,
    encoded_BNKRD: Array,
    neighbour_mask_BNKR: Array | None,
    segments_BL: Array | None,
  ) -> Array:
    B, L, D = h_BLD.shape
    _, N, K, R, _ = encoded_BNKRD.shape
    C = self.config.chunk_len
    queries = attending_chunks(h_BLD, C).reshape(B * N, C, D)
    memory = encoded_BNKRD.reshape(B * N, K * R, -1)
    mask = None
    if neighbour_mask_BNKR is not None:
      mask = neighbour_mask_BNKR.reshape(B * N, 1, 1, K * R)
    positions = None
    if self.config.cross_attention_rotary:
      positions = (C - 1 + jnp.arange(C), jnp.tile(jnp.arange(R), K))
    read = self.attention(
      queries, memory, mask=mask, rotary_positions=positions, values_per_memory=K
    ).reshape(B, N, C, D)
    if neighbour_mask_BNKR is not None:
      keep_BNC = neighbour_mask_BNKR.any(axis=(2, 3))[:, :, None]
      if segments_BL is not None:
        keep_BNC = keep_BNC & readable(segments_BL, C)
      read = jnp.where(keep_BNC[..., None], read, 0)
    return rejoin_chunks(read, L)

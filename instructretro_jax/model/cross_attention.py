"""Chunked cross-attention: each chunk of the sequence reads the neighbours of the one before it."""

from __future__ import annotations

from typing import NamedTuple

from flax import linen as nn
import jax.numpy as jnp

from instructretro_jax.array_types import Array
from instructretro_jax.model.attention import Attention, KeyValues
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
  """Where a position belongs to the document of the chunk whose neighbours it reads, [B, N, C].

  The document of a chunk is that of its first token which is no padding, so that a sequence padded
  on the left reads what it reads without its padding.
  """
  segments_BNC = split_chunks(segments_BL, chunk_len)
  first_BN1 = jnp.argmax(segments_BNC > 0, axis=2, keepdims=True)
  chunk_segment_BN1 = jnp.take_along_axis(segments_BNC, first_BN1, axis=2)
  return attending_chunks(segments_BL, chunk_len) == chunk_segment_BN1


def may_read(
  neighbour_mask_BNKR: Array | None, segments_BL: Array | None, chunk_len: int
) -> Array | None:
  """Where positions read the neighbours of their chunk, [B, N, C or 1]; None is everywhere.

  A position reads nothing of a chunk without neighbours, nor of another document's chunk.
  """
  keep = None if segments_BL is None else readable(segments_BL, chunk_len)
  if neighbour_mask_BNKR is None:
    return keep
  exist_BN1 = neighbour_mask_BNKR.any(axis=(2, 3))[:, :, None]
  return exist_BN1 if keep is None else keep & exist_BN1


class Encoded(NamedTuple):
  """The encoded neighbours of the N chunks of B sequences; X = B * N."""

  encoded_BNKRE: Array
  mask_XKR: Array | None  # True on tokens that are attended; None: all are
  keep_XT: Array | None  # False where a position reads nothing and receives zero; None: all read


class ChunkedCrossAttention(nn.Module):
  """Adds to each position what it reads from the encoded neighbours.

  Without masks all K * R neighbour tokens share one softmax, as in the reference. Positions before
  the end of the first chunk receive exactly zero, not even a bias.
  """

  config: RetroConfig

  def setup(self):
    c = self.config
    stack = c.cross_attention_stack
    self.norm = Norm(stack)
    self.attention = Attention(stack, stack.num_heads, value_shift=c.value_shift)

  def normalize(self, x_BLD: Array) -> Array:
    """The normed stream: what is read with, and what the encoder is conditioned on."""
    return self.norm(x_BLD)

  def keys_values(self, encoded_BNKRE: Array) -> KeyValues:
    """Keys and values of the neighbours of each chunk, [B * N, K * R, H, A]."""
    B, N, K, R, E = encoded_BNKRE.shape
    positions = jnp.tile(jnp.arange(R), K) if self.config.cross_attention_rotary else None
    return self.attention.keys_values(encoded_BNKRE.reshape(B * N, K * R, E), positions, K)

  def read(
    self,
    h_XTD: Array,
    offsets_T: Array,
    keys_values: KeyValues,
    mask_XKR: Array | None,
    keep_XT: Array | None,
  ) -> Array:
    """What T positions read of the neighbours of their chunk, for X chunks: [X, T, D].

    Args:
      offsets_T: distance of the positions from the end of the chunk.
      keys_values: of the neighbours, [X, K * R, H, A]; the masks are those of `Encoded`.
    """
    rotary = self.config.cross_attention_rotary
    q = self.attention.queries(h_XTD, self.config.chunk_len - 1 + offsets_T if rotary else None)
    mask = None if mask_XKR is None else mask_XKR.reshape(h_XTD.shape[0], 1, 1, -1)
    read_XTD = self.attention.read(q, keys_values, mask)
    return read_XTD if keep_XT is None else jnp.where(keep_XT[:, :, None], read_XTD, 0)

  def __call__(self, h_BLD: Array, encoded: Encoded) -> Array:
    """What each position of whole sequences reads, [B, L, D]."""
    L, C = h_BLD.shape[1], self.config.chunk_len
    h_BNCD = attending_chunks(h_BLD, C)
    h_XCD = h_BNCD.reshape(-1, *h_BNCD.shape[2:])
    keys_values = self.keys_values(encoded.encoded_BNKRE)
    read_XCD = self.read(h_XCD, jnp.arange(C), keys_values, encoded.mask_XKR, encoded.keep_XT)
    return rejoin_chunks(read_XCD.reshape(h_BNCD.shape), L)

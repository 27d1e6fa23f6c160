"""Retro: a decoder that may read encoded neighbours. With the gate at 0 it is the plain GPT."""

from __future__ import annotations

from flax import linen as nn
import jax.numpy as jnp

from instructretro_jax.array_types import Array
from instructretro_jax.model.attention import Attention, causal_mask
from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.model.cross_attention import ChunkedCrossAttention, split_chunks
from instructretro_jax.model.encoder import NeighbourEncoder
from instructretro_jax.model.layers import Embedding, FeedForward, Norm


class SelfAttention(nn.Module):
  """Causal self-attention with the norm before it; returns what is added to the stream."""

  config: DecoderConfig

  @nn.compact
  def __call__(self, x_BLD: Array, mask_B1LL: Array) -> Array:
    c = self.config
    h = Norm(c, name='norm')(x_BLD)
    position_L = jnp.arange(x_BLD.shape[1])
    rotary = (position_L, position_L) if c.positions == 'rotary' else None
    attention = Attention(c, c.kv_heads, name='attention')
    return attention(h, h, mask=mask_B1LL, rotary_positions=rotary)


class DecoderLayer(nn.Module):
  """The three blocks of a decoder layer; `Retro` calls them, since neighbours come in between."""

  config: RetroConfig

  def setup(self):
    c = self.config
    wrap = nn.remat if c.decoder.remat else lambda module: module
    self.self_attention = wrap(SelfAttention)(c.decoder)
    self.cross_attention = ChunkedCrossAttention(c)
    self.mlp = wrap(FeedForward)(c.decoder, c.decoder.ff_width)

  def attend(self, x_BLD: Array, mask_B1LL: Array) -> Array:
    return x_BLD + self.self_attention(x_BLD, mask_B1LL)

  def normalize(self, x_BLD: Array) -> Array:
    return self.cross_attention.normalize(x_BLD)

  def read(self, x_BLD, h_BLD, encoded_BNKRD, mask_BNKR, segments_BL, gate_B11) -> Array:
    read_BLD = self.cross_attention(h_BLD, encoded_BNKRD, mask_BNKR, segments_BL)
    return x_BLD + gate_B11.astype(x_BLD.dtype) * read_BLD

  def feed_forward(self, x_BLD: Array) -> Array:
    return x_BLD + self.mlp(x_BLD)


class Retro(nn.Module):
  """The model. `__call__` returns final hidden states; `logits` puts the head on them."""

  config: RetroConfig

  def setup(self):
    c = self.config
    self.embedding = Embedding(c.decoder)
    self.decoder = [DecoderLayer(c) for _ in range(c.decoder.num_layers)]
    self.encoder = NeighbourEncoder(c)
    if c.encoder_width is not None:
      self.encoder_embedding = Embedding(c.encoder_stack)
    if c.decoder.final_norm:
      self.final_norm = Norm(c.decoder)
    if not c.decoder.tie_embeddings:
      self.head = self.param(
        'head',
        nn.with_logical_partitioning(
          nn.initializers.normal(c.decoder.embedding_init_std), ('embed', 'vocab')
        ),
        (c.decoder.width, c.decoder.vocab_size),
      )

  def __call__(
    self,
    tokens_BL: Array,
    segments_BL: Array | None = None,
    neighbours_BNKR: Array | None = None,
    neighbour_mask_BNKR: Array | None = None,
    gate: float | Array = 1.0,
    *,
    positions_BL: Array | None = None,
    encoder_mask_BNKRR: Array | None = None,
  ) -> Array:
    """Final hidden states, [B, L, D].

    Args:
      tokens_BL: the sequence.
      segments_BL: document of each token, 0 for padding; attention stays inside a document.
      neighbours_BNKR: tokens of the neighbours of each chunk.
      neighbour_mask_BNKR: True on their real tokens; used if the model masks neighbours.
      gate: scale of the cross-attention. A Python 0 skips encoder and cross-attention and needs no
        neighbours; otherwise a scalar, or one value per sequence [B].
      positions_BL: row of the learned position table for each token; 0 .. L - 1 if not given.
        Rotary positions always count from the start of the sequence, as in Megatron.
      encoder_mask_BNKRR: which tokens of a neighbour each of its tokens may attend in the encoder's
        self-attention, and nowhere else (Megatron's `context_mask`); every axis may be 1.

    Raises ValueError if the gate is open and there are no neighbours, or N does not fit L.
    """
    c = self.config
    is_open = not (isinstance(gate, (int, float)) and gate == 0)
    if is_open:
      self._check_neighbours(tokens_BL, neighbours_BNKR)
      gate_B11 = jnp.broadcast_to(jnp.asarray(gate), tokens_BL.shape[:1])[:, None, None]
      if not c.mask_neighbours:
        neighbour_mask_BNKR = None
    x_BLD = self.embedding(tokens_BL, positions_BL)
    mask_B1LL = causal_mask(segments_BL, tokens_BL.shape[1])
    encoded_BNKRD = None
    for n, layer in enumerate(self.decoder):
      x_BLD = layer.attend(x_BLD, mask_B1LL)
      if is_open and n in c.retro_layers:
        h_BLD = layer.normalize(x_BLD)
        if encoded_BNKRD is None:
          encoded_BNKRD = self._encode(
            h_BLD, segments_BL, neighbours_BNKR, neighbour_mask_BNKR, encoder_mask_BNKRR
          )
        x_BLD = layer.read(x_BLD, h_BLD, encoded_BNKRD, neighbour_mask_BNKR, segments_BL, gate_B11)
      x_BLD = layer.feed_forward(x_BLD)
    return self.final_norm(x_BLD) if c.decoder.final_norm else x_BLD

  def head_kernel(self) -> Array:
    """The output matrix, [D, V]."""
    return self.embedding.table.T if self.config.decoder.tie_embeddings else self.head

  def logits(self, *args, **kwargs) -> Array:
    """Logits [B, L, V] in float32; arguments as of `__call__`."""
    hidden_BLD = self(*args, **kwargs)
    dtype = jnp.promote_types(hidden_BLD.dtype, jnp.float32)
    kernel_DV = self.head_kernel().astype(hidden_BLD.dtype)
    return jnp.einsum('bld,dv->blv', hidden_BLD, kernel_DV, preferred_element_type=dtype)

  def hidden_and_head(self, *args, **kwargs) -> tuple[Array, Array]:
    """Hidden states and output matrix, for a loss that never forms all logits at once."""
    return self(*args, **kwargs), self.head_kernel()

  def _encode(
    self, h_BLD, segments_BL, neighbours_BNKR, neighbour_mask_BNKR, encoder_mask_BNKRR
  ) -> Array:
    C = self.config.chunk_len
    B, N, K, R = neighbours_BNKR.shape
    embedding = self.embedding if self.config.encoder_width is None else self.encoder_embedding
    embedded = embedding(neighbours_BNKR.reshape(-1, R)).reshape(B, N, K, R, -1)
    chunk_mask_BNC = None
    if self.config.mask_neighbours and segments_BL is not None:
      chunk_mask_BNC = split_chunks(segments_BL, C) > 0
    mask_BNKRR = encoder_mask_BNKRR
    if neighbour_mask_BNKR is not None:
      real_BNK1R = neighbour_mask_BNKR[:, :, :, None]
      mask_BNKRR = real_BNK1R if mask_BNKRR is None else mask_BNKRR & real_BNK1R
    return self.encoder(embedded, split_chunks(h_BLD, C), mask_BNKRR, chunk_mask_BNC)

  def _check_neighbours(self, tokens_BL: Array, neighbours_BNKR: Array | None) -> None:
    if neighbours_BNKR is None:
      raise ValueError('the gate is open but no neighbours were given: pass them, or gate=0')
    N = -(-tokens_BL.shape[1] // self.config.chunk_len)
    if neighbours_BNKR.shape[:2] != (tokens_BL.shape[0], N):
      raise ValueError(
        f'{tokens_BL.shape[0]} sequences of {tokens_BL.shape[1]} tokens have {N} chunks of '
        f'{self.config.chunk_len}, but neighbours have the shape {neighbours_BNKR.shape}'
      )

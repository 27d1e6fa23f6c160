"""Retro: a decoder that may read encoded neighbours. With the gate at 0 it is the plain GPT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from instructretro_jax.array_types import Array
from instructretro_jax.model.attention import Attention, KeyValues, causal_mask
from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.model.cross_attention import (
  ChunkedCrossAttention,
  Retrieved,
  may_read,
  split_chunks,
)
from instructretro_jax.model.encoder import NeighbourEncoder
from instructretro_jax.model.layers import Embedding, FeedForward, Norm


def is_open(gate: float | Array) -> bool:
  """Whether cross-attention is computed at all: a Python 0 is closed, an array never."""
  return not (isinstance(gate, (int, float)) and gate == 0)


class SelfAttention(nn.Module):
  """Causal self-attention with the norm before it; returns what is added to the stream."""

  config: DecoderConfig

  @nn.compact
  def __call__(
    self,
    x_BTD: Array,
    mask_B1TU: Array,
    positions: Array,
    past: KeyValues | None = None,
    slot: Array | None = None,
  ) -> tuple[Array, KeyValues]:
    """Also returns the keys and values: of `x_BTD`, or `past` with those written from `slot` on."""
    c = self.config
    h = Norm(c, name='norm')(x_BTD)
    attention = Attention(c, c.kv_heads, name='attention')
    rotary_positions = positions if c.positions == 'rotary' else None
    keys_values = attention.keys_values(h, rotary_positions)
    if past is not None:
      write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis=1)
      keys_values = jax.tree.map(write, past, keys_values)
    return attention.read(
      attention.queries(h, rotary_positions), keys_values, mask_B1TU
    ), keys_values


class DecoderLayer(nn.Module):
  """The three blocks of a decoder layer; `Retro` calls them, since neighbours come in between."""

  config: RetroConfig

  def setup(self):
    c = self.config
    wrap = nn.remat if c.decoder.remat else lambda module: module
    self.self_attention = wrap(SelfAttention)(c.decoder)
    self.cross_attention = ChunkedCrossAttention(c)
    self.mlp = wrap(FeedForward)(c.decoder, c.decoder.ff_width)


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
    return self.run_sequence(
      tokens_BL,
      segments_BL,
      neighbours_BNKR,
      neighbour_mask_BNKR,
      gate=gate,
      positions_BL=positions_BL,
      encoder_mask_BNKRR=encoder_mask_BNKRR,
    )[0]

  def run_sequence(
    self,
    tokens_BL: Array,
    segments_BL: Array | None,
    neighbours_BNKR: Array | None,
    neighbour_mask_BNKR: Array | None,
    *,
    gate: float | Array,
    positions_BL: Array | None = None,
    encoder_mask_BNKRR: Array | None = None,
    lengths_B: Array | None = None,
  ) -> tuple[Array, tuple[KeyValues, ...], Retrieved | None]:
    """Final hidden states, and what later tokens may read; other arguments as of `__call__`.

    Args:
      lengths_B: each row is its last so many tokens, and computed as if alone: positions count from
        there, and what stands before is no part of any chunk.
    """
    c, C, L = self.config, self.config.chunk_len, tokens_BL.shape[1]
    positions, is_row_BL = jnp.arange(L)[None], None
    if lengths_B is not None:
      positions = positions - (L - lengths_B[:, None])
      is_row_BL = positions >= 0
      positions_BL = positions = jnp.maximum(positions, 0)
      segments_BL = is_row_BL.astype(jnp.int32) * (1 if segments_BL is None else segments_BL)
    if is_open(gate):
      self._check_neighbours(tokens_BL, neighbours_BNKR)

    def retrieve(h_BLD: Array) -> Retrieved:
      chunk_mask_BNC, mask_BNKR = None, None
      documents_BL = None if is_row_BL is None else is_row_BL.astype(jnp.int32)
      if c.mask_neighbours:
        mask_BNKR, documents_BL = neighbour_mask_BNKR, segments_BL
        real_BL = jnp.ones((len(tokens_BL), L), bool) if segments_BL is None else segments_BL > 0
        chunk_mask_BNC = split_chunks(real_BL, C)
      if is_row_BL is not None:
        h_BLD = jnp.where(is_row_BL[:, :, None], h_BLD, 0)
      keys_values = self.encode_neighbours(
        split_chunks(h_BLD, C), neighbours_BNKR, mask_BNKR, chunk_mask_BNC, encoder_mask_BNKRR
      )
      keep_BNC = may_read(mask_BNKR, documents_BL, C)
      merge = lambda x: None if x is None else x.reshape(-1, *x.shape[2:])
      return Retrieved(keys_values, merge(mask_BNKR), merge(keep_BNC))

    read = lambda n, h_BLD, retrieved: self.decoder[n].cross_attention(h_BLD, retrieved, n)
    x_BLD = self.embedding(tokens_BL, positions_BL)
    mask_B1LL = causal_mask(segments_BL, L)
    return self.run_layers(x_BLD, mask_B1LL, positions, gate, retrieve, read)

  def run_layers(
    self,
    x_BTD: Array,
    mask_B1TU: Array,
    positions: Array,
    gate: float | Array,
    retrieve: Callable[[Array], Any],
    read: Callable[[int, Array, Any], Array],
    past: tuple[KeyValues, ...] | None = None,
    slot: Array | None = None,
  ) -> tuple[Array, tuple[KeyValues, ...], Any]:
    """The decoder, for whole sequences and for single tokens alike.

    Args:
      retrieve: called once, at the first cross-attention layer, with its normed stream; returns
        what there is to read.
      read: what layer n adds to the stream, from its number, its normed stream and what there is.
      past: keys and values of each layer to extend from `slot` on; attention is over all of them.

    Returns: final hidden states; keys and values of each layer; what `retrieve` returned, or None.
    """
    c = self.config
    gate_B11 = jnp.broadcast_to(jnp.asarray(gate, x_BTD.dtype), x_BTD.shape[:1])[:, None, None]
    keys_values, retrieved = [], None
    for n, layer in enumerate(self.decoder):
      added, kept = layer.self_attention(
        x_BTD, mask_B1TU, positions, None if past is None else past[n], slot
      )
      keys_values.append(kept)
      x_BTD += added
      if is_open(gate) and n in c.retro_layers:
        h_BTD = layer.cross_attention.normalize(x_BTD)
        if retrieved is None:
          retrieved = retrieve(h_BTD)
        x_BTD += gate_B11 * read(n, h_BTD, retrieved)
      x_BTD += layer.mlp(x_BTD)
    return self.normalize(x_BTD), tuple(keys_values), retrieved

  def normalize(self, x_BTD: Array) -> Array:
    """The final norm, if the model has one."""
    return self.final_norm(x_BTD) if self.config.decoder.final_norm else x_BTD

  def encode_neighbours(
    self,
    chunks_BNCD: Array,
    neighbours_BNKR: Array,
    neighbour_mask_BNKR: Array | None,
    chunk_mask_BNC: Array | None,
    encoder_mask_BNKRR: Array | None = None,
  ) -> dict[int, KeyValues]:
    """Keys and values of the neighbours of each chunk, for each layer with cross-attention."""
    *shape, R = neighbours_BNKR.shape
    embedding = self.embedding if self.config.encoder_width is None else self.encoder_embedding
    embedded = embedding(neighbours_BNKR.reshape(-1, R)).reshape(*shape, R, -1)
    mask_BNKRR = encoder_mask_BNKRR
    if neighbour_mask_BNKR is not None:
      real_BNK1R = neighbour_mask_BNKR[:, :, :, None]
      mask_BNKRR = real_BNK1R if mask_BNKRR is None else mask_BNKRR & real_BNK1R
    encoded_BNKRE = self.encoder(embedded, chunks_BNCD, mask_BNKRR, chunk_mask_BNC)
    keys_values = lambda n: self.decoder[n].cross_attention.keys_values(encoded_BNKRE)
    return {n: keys_values(n) for n in self.config.retro_layers}

  def head_kernel(self) -> Array:
    """The output matrix, [D, V]."""
    return self.embedding.table.T if self.config.decoder.tie_embeddings else self.head

  def logits(self, *args, **kwargs) -> Array:
    """Logits [B, L, V] in float32; arguments as of `__call__`."""
    return self.to_logits(self(*args, **kwargs))

  def to_logits(self, hidden_BLD: Array) -> Array:
    """The head on final hidden states: logits [B, L, V] in float32."""
    dtype = jnp.promote_types(hidden_BLD.dtype, jnp.float32)
    kernel_DV = self.head_kernel().astype(hidden_BLD.dtype)
    return jnp.einsum('bld,dv->blv', hidden_BLD, kernel_DV, preferred_element_type=dtype)

  def hidden_and_head(self, *args, **kwargs) -> tuple[Array, Array]:
    """Hidden states and output matrix, for a loss that never forms all logits at once."""
    return self(*args, **kwargs), self.head_kernel()

  def _check_neighbours(self, tokens_BL: Array, neighbours_BNKR: Array | None) -> None:
    if neighbours_BNKR is None:
      raise ValueError('the gate is open but no neighbours were given: pass them, or gate=0')
    N = -(-tokens_BL.shape[1] // self.config.chunk_len)
    if neighbours_BNKR.shape[:2] != (tokens_BL.shape[0], N):
      raise ValueError(
        f'{tokens_BL.shape[0]} sequences of {tokens_BL.shape[1]} tokens have {N} chunks of '
        f'{self.config.chunk_len}, but neighbours have the shape {neighbours_BNKR.shape}'
      )

"""Retro: a decoder that may read encoded neighbours. With the gate at 0 it is the plain GPT."""

from __future__ import annotations

from flax import linen as nn
import jax.numpy as jnp

from instructretro_jax.array_types import Array
from instructretro_jax.model.attention import KeyValues
from instructretro_jax.model.config import RetroConfig
from instructretro_jax.model.cross_attention import Encoded, may_read, split_chunks
from instructretro_jax.model.decoder import make_layers
from instructretro_jax.model.encoder import NeighbourEncoder
from instructretro_jax.model.execution import Execution
from instructretro_jax.model.layer_groups import layer_groups
from instructretro_jax.model.layers import Embedding, Norm


def is_open(gate: float | Array) -> bool:
  """Whether cross-attention is computed at all: a Python 0 is closed, an array never."""
  return not (isinstance(gate, (int, float)) and gate == 0)


class Retro(nn.Module):
  """The model. `__call__` returns final hidden states; `logits` puts the head on them."""

  config: RetroConfig
  execution: Execution = Execution()

  def setup(self):
    c, execution = self.config, self.execution
    self.embedding = Embedding(c.decoder, execution.dtype)
    groups = layer_groups(c, execution.scan_layers)
    self.decoder = {group.key: make_layers(c, execution, group) for group in groups}
    self.encoder = NeighbourEncoder(c, execution.remat)
    if c.encoder_width is not None:
      self.encoder_embedding = Embedding(c.encoder_stack, execution.dtype)
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
  ) -> tuple[Array, tuple[KeyValues, ...], Encoded | None]:
    """Final hidden states, and what later tokens may read; other arguments as of `__call__`.

    Args:
      lengths_B: each row is its last so many tokens, and computed as if alone: positions count from
        there, and what stands before is no part of any chunk.

    Returns: final hidden states; keys and values of each layer (none of scanned layers); the
    encoded neighbours, None if the gate is closed.
    """
    c, L = self.config, tokens_BL.shape[1]
    positions, is_row_BL = jnp.arange(L)[None], None
    if lengths_B is not None:
      positions = positions - (L - lengths_B[:, None])
      is_row_BL = positions >= 0
      positions_BL = positions = jnp.maximum(positions, 0)
      segments_BL = is_row_BL.astype(jnp.int32) * (1 if segments_BL is None else segments_BL)
    if is_open(gate):
      self._check_neighbours(tokens_BL, neighbours_BNKR)

    def encode(h_BLD: Array) -> Encoded:
      chunk_mask_BNC, mask_BNKR = None, None
      documents_BL = None if is_row_BL is None else is_row_BL.astype(jnp.int32)
      if c.mask_neighbours:
        mask_BNKR, documents_BL = neighbour_mask_BNKR, segments_BL
        real_BL = jnp.ones((len(tokens_BL), L), bool) if segments_BL is None else segments_BL > 0
        chunk_mask_BNC = split_chunks(real_BL, c.chunk_len)
      if is_row_BL is not None:
        h_BLD = jnp.where(is_row_BL[:, :, None], h_BLD, 0)
      encoded_BNKRE = self.encode_neighbours(
        split_chunks(h_BLD, c.chunk_len),
        neighbours_BNKR,
        mask_BNKR,
        chunk_mask_BNC,
        encoder_mask_BNKRR,
      )
      keep_BNC = may_read(mask_BNKR, documents_BL, c.chunk_len)
      merge = lambda x: None if x is None else x.reshape(-1, *x.shape[2:])
      return Encoded(encoded_BNKRE, merge(mask_BNKR), merge(keep_BNC))

    x_BLD = self.embedding(tokens_BL, positions_BL)
    gate_B11 = jnp.broadcast_to(jnp.asarray(gate, x_BLD.dtype), x_BLD.shape[:1])[:, None, None]
    keys_values, encoded = [], None
    for group in layer_groups(c, self.execution.scan_layers):
      layers = self.decoder[group.key]
      if is_open(gate) and group.first == c.retro_layers[0]:
        x_BLD, kept = layers.attend(x_BLD, positions, segments_BL)
        encoded = encode(layers.cross_attention.normalize(x_BLD))
        x_BLD = layers.finish(x_BLD, gate_B11, encoded)
      else:
        memory = encoded if any(group.reads) else None
        x_BLD, kept = layers(x_BLD, positions, segments_BL, gate_B11, memory)
      keys_values.append(kept)
    return self.normalize(x_BLD), tuple(keys_values), encoded

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
  ) -> Array:
    """The encoded neighbours of each chunk, [B, N, K, R, E]."""
    *shape, R = neighbours_BNKR.shape
    embedding = self.embedding if self.config.encoder_width is None else self.encoder_embedding
    embedded = embedding(neighbours_BNKR.reshape(-1, R)).reshape(*shape, R, -1)
    mask_BNKRR = encoder_mask_BNKRR
    if neighbour_mask_BNKR is not None:
      real_BNK1R = neighbour_mask_BNKR[:, :, :, None]
      mask_BNKRR = real_BNK1R if mask_BNKRR is None else mask_BNKRR & real_BNK1R
    return self.encoder(embedded, chunks_BNCD, mask_BNKRR, chunk_mask_BNC)

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

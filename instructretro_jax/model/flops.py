"""FLOPs that the mathematics of a model needs: the numerator of model-FLOP utilisation.

Only matrix products count, at 2 FLOPs a multiplication and addition; norms, activations, softmax
and the look-up of embeddings do not, nor does recomputation. Products with weights cost
2 x tokens x inputs x outputs; attention costs two products (scores, and reading by them).
"""

from __future__ import annotations

import dataclasses

from instructretro_jax.model.config import DecoderConfig, RetroConfig

_GATED = ('swiglu', 'geglu')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flops:
  """FLOPs by part of the model, for a whole batch."""

  decoder: float  # self-attention and MLPs
  encoder: float  # of neighbours, its reading of chunks included
  cross_attention: float  # chunked: queries, keys and values of neighbours, reading
  head: float  # to the vocabulary

  @property
  def total(self) -> float:
    """All of them together."""
    return self.decoder + self.encoder + self.cross_attention + self.head


def forward_flops(
  config: RetroConfig,
  *,
  batch_size: int,
  seq_len: int,
  num_neighbours: int = 2,
  is_open: bool = True,
  count_masked: bool = False,
) -> Flops:
  """One forward pass over whole sequences with logits at every position.

  Args:
    num_neighbours: K, each of twice the chunk length.
    is_open: whether the gate is; a closed one needs no encoder and no cross-attention.
    count_masked: count causal attention in full, as Megatron does (Narayanan et al. 2021,
      appendix), and not by half, as the tokens that a position may read.
  """
  c, L = config.decoder, seq_len
  layer = _attention(c, L, L, L if count_masked else L / 2, kv_heads=c.kv_heads) + _mlp(c, L)
  encoder = cross_attention = 0.0
  if is_open:
    C, stack = config.chunk_len, config.encoder_stack
    N, R = -(-L // C), 2 * C
    Z = N * num_neighbours * R  # tokens of all neighbours of a sequence
    encoder = config.encoder_layers * (_attention(stack, Z, Z, R) + _mlp(stack, Z))
    encoder += _attention(stack, Z, N * C, C, memory_width=c.width)
    cross_attention = len(config.retro_layers) * _attention(
      c, N * C, Z, num_neighbours * R, memory_width=stack.width
    )
  return Flops(
    decoder=batch_size * c.num_layers * layer,
    encoder=batch_size * encoder,
    cross_attention=batch_size * cross_attention,
    head=batch_size * 2 * L * c.width * c.vocab_size,
  )


def train_step_flops(
  config: RetroConfig,
  *,
  batch_size: int,
  seq_len: int,
  num_neighbours: int = 2,
  is_open: bool = True,
  is_decoder_frozen: bool = False,
  count_masked: bool = False,
) -> Flops:
  """One step: forward, and backward at twice that (gradients of inputs and of weights).

  With a frozen decoder its weights need no gradients, and the layers below the first
  cross-attention no backward pass at all.
  """
  forward = forward_flops(
    config,
    batch_size=batch_size,
    seq_len=seq_len,
    num_neighbours=num_neighbours,
    is_open=is_open,
    count_masked=count_masked,
  )
  if not is_decoder_frozen:
    return _scaled(forward, decoder=3, head=3)
  if not is_open:
    raise ValueError('a frozen decoder behind a closed gate has nothing to train')
  c, L = config.decoder, seq_len
  above = c.num_layers - 1 - config.retro_layers[0]  # layers whose attention passes gradients
  reading = _scores(c, L, L if count_masked else L / 2)
  attention = _attention(c, L, L, L if count_masked else L / 2, kv_heads=c.kv_heads) + reading
  mlps = above if c.parallel_residual else above + 1  # else it is before neighbours are read
  backward = above * attention + mlps * _mlp(c, L)
  step = _scaled(forward, decoder=1, head=2)
  return dataclasses.replace(step, decoder=step.decoder + batch_size * backward)


def decode_step_flops(
  config: RetroConfig,
  *,
  batch_size: int,
  cache_len: int,
  num_neighbours: int = 2,
  is_open: bool = True,
) -> Flops:
  """One new token a row that attends to `cache_len` slots, at the end of a chunk.

  There the neighbours of the chunk are encoded, once in a chunk's length of tokens; all others
  cost less by the encoder and by the keys and values of the cross-attention.
  """
  c, C = config.decoder, config.chunk_len
  layer = _attention(c, 1, 1, cache_len, kv_heads=c.kv_heads) + _mlp(c, 1)
  encoder = cross_attention = 0.0
  if is_open:
    stack, R = config.encoder_stack, 2 * C
    Z = num_neighbours * R
    encoder = config.encoder_layers * (_attention(stack, Z, Z, R) + _mlp(stack, Z))
    encoder += _attention(stack, Z, C, C, memory_width=c.width)
    cross_attention = len(config.retro_layers) * _attention(c, 1, Z, Z, memory_width=stack.width)
  return Flops(
    decoder=batch_size * c.num_layers * layer,
    encoder=batch_size * encoder,
    cross_attention=batch_size * cross_attention,
    head=batch_size * 2 * c.width * c.vocab_size,
  )


def _attention(
  c: DecoderConfig,
  queries: int,
  memories: int,
  read: float,
  *,
  kv_heads: int | None = None,
  memory_width: int | None = None,
) -> float:
  """Projections of queries, keys, values and output, and reading `read` memories a query."""
  width, kv_width = c.num_heads * c.head_width, (kv_heads or c.num_heads) * c.head_width
  projections = 4 * queries * c.width * width
  projections += 4 * memories * (memory_width or c.width) * kv_width
  return projections + _scores(c, queries, read)


def _scores(c: DecoderConfig, queries: int, read: float) -> float:
  return 4 * queries * read * c.num_heads * c.head_width


def _mlp(c: DecoderConfig, tokens: int) -> float:
  return 2 * tokens * c.width * c.ff_width * (3 if c.activation in _GATED else 2)


def _scaled(forward: Flops, *, decoder: float, head: float) -> Flops:
  return Flops(
    decoder=decoder * forward.decoder,
    encoder=3 * forward.encoder,
    cross_attention=3 * forward.cross_attention,
    head=head * forward.head,
  )

"""Incremental decoding: what earlier tokens leave for later ones, and one token at a time.

Rows of a batch end together: prompts are padded on the left and fill whole chunks, so that the
first new token starts a chunk (the left-padding rule of Wang et al. 2023, section 3) and all rows
end their chunks at the same step. A row is computed as if it stood alone and without its padding.

The functions take a bound model: `model.apply({'params': params}, ..., method=prefill)`.
"""

from __future__ import annotations

from collections.abc import Callable

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from instructretro_jax.array_types import Array
from instructretro_jax.model.attention import KeyValues
from instructretro_jax.model.retro import Retro, is_open


@struct.dataclass
class Retrieved:
  """The neighbours of the last whole chunk of each row."""

  keys_values: dict[int, KeyValues]  # by decoder layer, [B, K * R, H, A]
  mask_BKR: Array | None
  keep_B1: Array | None  # False in rows that read nothing


@struct.dataclass
class Reading:
  """What the retrieval part keeps. Only the neighbours of the last whole chunk can be read."""

  retrieved: Retrieved
  chunk_BCD: Array  # normed stream of the chunk under way, at the first cross-attention layer
  neighbours_BKR: Array  # to encode when the chunk under way ends
  mask_BKR: Array | None  # None if the model does not mask neighbours


@struct.dataclass
class Cache:
  """State between tokens, of a fixed size: U slots a row, padding included."""

  slot: Array  # the next one to fill, the same in all rows
  position_B: Array  # of the next token in its row
  segment_B: Array  # document of the next token
  segments_BU: Array  # document of each slot; 0 where there is nothing to attend to
  past: tuple[KeyValues, ...]  # of each decoder layer, [B, U, G, A]
  reading: Reading | None  # None if the gate is closed


def prefill(
  model: Retro,
  tokens_BP: Array,
  lengths_B: Array,
  neighbours_BNKR: Array | None = None,
  mask_BNKR: Array | None = None,
  *,
  max_len: int,
  gate: float | Array = 1.0,
  segments_BP: Array | None = None,
) -> tuple[Cache, Array]:
  """A cache of `max_len` slots (U) that holds the prompts, and the logits after them, [B, V].

  Args:
    tokens_BP: prompts padded on the left, P a multiple of the chunk length.
    lengths_B: tokens of each prompt, at least 1.
    neighbours_BNKR: neighbours of each of the P / C chunks; those of the last one serve the chunks
      to come until `step` is given others. Not needed if the gate is a Python 0.
    mask_BNKR: True on their real tokens; used if the model masks neighbours.
    gate: as of the model.
    segments_BP: document of each token; new tokens belong to that of the last.

  Raises ValueError if P is no multiple of the chunk length or exceeds `max_len`.
  """
  C, (B, P) = model.config.chunk_len, tokens_BP.shape
  if P % C or max_len < P:
    raise ValueError(f'{P} prompt tokens: not whole chunks of {C}, or more than max_len {max_len}')
  if model.execution.scan_layers:
    raise ValueError('decoding takes layers one by one: unstack_layers, and scan_layers=False')
  mask_BNKR = _used_mask(model, neighbours_BNKR, mask_BNKR)
  hidden_BPD, keys_values, encoded = model.run_sequence(
    tokens_BP, segments_BP, neighbours_BNKR, mask_BNKR, gate=gate, lengths_B=lengths_B
  )
  is_row_BP = jnp.arange(P)[None] >= P - lengths_B[:, None]
  segments_BP = is_row_BP.astype(jnp.int32) * (1 if segments_BP is None else segments_BP)
  extend = lambda x: jnp.pad(x, ((0, 0), (0, max_len - P)) + ((0, 0),) * (x.ndim - 2))
  reading = None
  if encoded is not None:
    last = jax.tree.map(lambda x: x.reshape(B, P // C, *x.shape[1:])[:, -1], encoded[1:])
    mask_BKR, keep_BC = last
    reading = Reading(
      # the last prompt token may read what its document may read from here on
      retrieved=_retrieved(model, encoded.encoded_BNKRE[:, -1:], mask_BKR, keep_BC[:, :1]),
      chunk_BCD=jnp.zeros((B, C, hidden_BPD.shape[-1]), hidden_BPD.dtype),
      neighbours_BKR=neighbours_BNKR[:, -1],
      mask_BKR=None if mask_BNKR is None else mask_BNKR[:, -1],
    )
  cache = Cache(
    slot=jnp.asarray(P, jnp.int32),
    position_B=lengths_B.astype(jnp.int32),
    segment_B=segments_BP[:, -1],
    segments_BU=extend(segments_BP),
    past=jax.tree.map(extend, keys_values),
    reading=reading,
  )
  return cache, model.to_logits(hidden_BPD[:, -1:])[:, 0]


def step(
  model: Retro,
  cache: Cache,
  token_B: Array,
  neighbours_BKR: Array | None = None,
  mask_BKR: Array | None = None,
  *,
  gate: float | Array = 1.0,
) -> tuple[Cache, Array]:
  """The cache with one more token in each row, and the logits after it, [B, V].

  Neighbours are encoded once a chunk, with its last token, which already reads them. For live
  retrieval, give new ones when (cache.slot + 1) % C == 0. That a cache is full goes unnoticed
  here: make it as long as prompt and new tokens together.

  Args:
    neighbours_BKR: for the next chunk that ends (with this token or later) and all after it; by
      default those of the chunk before.
    gate: open if and only if it was at `prefill`, else ValueError.
  """
  reading, slot = cache.reading, cache.slot
  if is_open(gate) != (reading is not None):
    raise ValueError('the gate must be open in step if and only if it was in prefill')
  if reading is not None and neighbours_BKR is not None:
    mask_BKR = _used_mask(model, neighbours_BKR, mask_BKR)
    reading = reading.replace(neighbours_BKR=neighbours_BKR, mask_BKR=mask_BKR)
  segments_BU = jax.lax.dynamic_update_slice_in_dim(
    cache.segments_BU, cache.segment_B[:, None], slot, axis=1
  )
  positions_B1 = cache.position_B[:, None]
  mask_B11U = (segments_BU == cache.segment_B[:, None])[:, None, None, :]
  x_B1D = model.embedding(token_B[:, None], positions_B1)
  gate_B11 = jnp.broadcast_to(jnp.asarray(gate, x_B1D.dtype), x_B1D.shape[:1])[:, None, None]
  retro_layers = model.config.retro_layers if is_open(gate) else ()
  past = []
  for n, (layer, before) in enumerate(zip(model.decoder.values(), cache.past)):
    x_B1D, keys_values = layer.extend(x_B1D, positions_B1, before, slot, mask_B11U)
    past.append(keys_values)
    if n in retro_layers:
      h_B1D = layer.cross_attention.normalize(x_B1D)
      if n == retro_layers[0]:
        reading = _continue_chunk(model, reading, slot, h_B1D)
      found, offset_1 = reading.retrieved, (slot + 1)[None] % model.config.chunk_len
      read_B1D = layer.cross_attention.read(
        h_B1D, offset_1, found.keys_values[n], found.mask_BKR, found.keep_B1
      )
      x_B1D += gate_B11 * read_B1D
    x_B1D = layer.finish(x_B1D, gate_B11, None)
  cache = cache.replace(
    slot=slot + 1,
    position_B=cache.position_B + 1,
    segments_BU=segments_BU,
    past=tuple(past),
    reading=reading,
  )
  return cache, model.to_logits(model.normalize(x_B1D))[:, 0]


def compile_step(model: Retro, is_open: bool) -> Callable[..., tuple[Cache, Array]]:
  """`step` for a loop on the host: (params, cache, token_B, neighbours_BKR, mask_BKR, gate).

  The memory of the cache that is given goes to the one that is returned: use each cache once.
  """

  def run(params, cache, token_B, neighbours_BKR=None, mask_BKR=None, gate=1.0):
    variables, gate = {'params': params}, gate if is_open else 0
    return model.apply(variables, cache, token_B, neighbours_BKR, mask_BKR, gate=gate, method=step)

  return jax.jit(run, donate_argnames='cache')


def _continue_chunk(model: Retro, reading: Reading, slot: Array, h_B1D: Array) -> Reading:
  """Adds a token to the chunk under way; at its end, encodes its neighbours for reading."""
  C, mask_BKR = model.config.chunk_len, reading.mask_BKR
  chunk_BCD = jax.lax.dynamic_update_slice_in_dim(reading.chunk_BCD, h_B1D, slot % C, axis=1)

  def encode(model: Retro) -> Retrieved:
    keep_B1, mask_B1KR = jnp.ones_like(reading.retrieved.keep_B1), None
    if mask_BKR is not None:
      keep_B1, mask_B1KR = mask_BKR.any(axis=(1, 2))[:, None], mask_BKR[:, None]
    encoded_B1KRE = model.encode_neighbours(
      chunk_BCD[:, None], reading.neighbours_BKR[:, None], mask_B1KR, None
    )
    return _retrieved(model, encoded_B1KRE, mask_BKR, keep_B1)

  keep = lambda model: reading.retrieved
  retrieved = nn.cond((slot + 1) % C == 0, encode, keep, model)
  return reading.replace(retrieved=retrieved, chunk_BCD=chunk_BCD)


def _retrieved(
  model: Retro, encoded_B1KRE: Array, mask_BKR: Array | None, keep_B1: Array | None
) -> Retrieved:
  layer = lambda n: model.decoder[str(n)].cross_attention
  keys_values = {n: layer(n).keys_values(encoded_B1KRE) for n in model.config.retro_layers}
  return Retrieved(keys_values, mask_BKR, keep_B1)


def _used_mask(model: Retro, neighbours: Array | None, mask: Array | None) -> Array | None:
  """The mask that the model uses; none given means that all tokens are real."""
  if neighbours is None or not model.config.mask_neighbours:
    return None
  return jnp.ones(neighbours.shape, bool) if mask is None else mask

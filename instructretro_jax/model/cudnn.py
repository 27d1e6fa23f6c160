"""cuDNN's fused attention over documents that share a row; GPUs of Hopper or later.

cuDNN takes no mask of segments. It takes packed documents: where in its row each begins, and how
long it is. Room for them is a fixed number, and what the backward pass keeps grows with it.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib

import jax
from jax._src.cudnn import fused_attention_stablehlo as fused
import jax.numpy as jnp

from instructretro_jax.array_types import Array
from instructretro_jax.model import sharding

TOKENS_PER_DOCUMENT = 64  # of a row, so many have room for one: as chunks of 64 tokens ask for


def attend_by_cudnn(
  q_BLHA: Array, k_BLGA: Array, v_BLGA: Array, segments_BL: Array | None
) -> Array:
  """As `attend_causally`; positions of padding read the document before them.

  A row has room for a document every `TOKENS_PER_DOCUMENT` tokens. One with more is NaN, so that
  training stops and names the step: attention = 'dot_product' takes any number.

  Raises RuntimeError without cuDNN, and NotImplementedError for float32, or for segments on a GPU
  before Hopper.
  """
  if segments_BL is None:
    return jax.nn.dot_product_attention(
      q_BLHA, k_BLGA, v_BLGA, is_causal=True, implementation='cudnn'
    )

  def of_shard(q_BLHA: Array, k_BLGA: Array, v_BLGA: Array, segments_BL: Array) -> Array:
    # JAX 0.10 strides over keys as over queries (jax-ml/jax#39521): each head needs its own
    k_BLHA, v_BLHA = (
      jnp.repeat(x, q_BLHA.shape[2] // x.shape[2], axis=2) for x in (k_BLGA, v_BLGA)
    )
    lengths_BM, starts_BW, fits_B = packed_documents(segments_BL)
    read_BLHA = fused.dot_product_attention(
      q_BLHA,
      k_BLHA,
      v_BLHA,
      q_seqlen=lengths_BM,
      kv_seqlen=lengths_BM,
      q_offsets=starts_BW,
      kv_offsets=starts_BW,
      scale=q_BLHA.shape[-1] ** -0.5,
      mask_type=fused.MaskType.PADDING_CAUSAL,
    )
    return jnp.where(fits_B[:, None, None, None], read_BLHA, jnp.nan)

  heads, kv_heads = ('batch', None, 'act_heads', None), ('batch', None, 'act_kv_heads', None)
  mapped = sharding.over_shards(of_shard, (heads, kv_heads, kv_heads, ('batch', None)), heads)
  return mapped(q_BLHA, k_BLGA, v_BLGA, segments_BL)


def packed_documents(segments_BL: Array) -> tuple[Array, Array, Array]:
  """Where documents lie, as cuDNN takes it; they fill each row without gaps.

  A document begins where its number does, or with the row, and ends where the next one begins: what
  padding follows it is part of it, which causal attention keeps from all of its real tokens.

  Args:
    segments_BL: document of each position, in one piece each; 0 on padding.

  Returns: lengths [B, M] and starts [B, M + 1] in int32, with -1 where there are fewer than M; and
    whether the documents of each row are M or fewer, [B].
  """
  L = segments_BL.shape[1]
  M = max(2, -(-L // TOKENS_PER_DOCUMENT))  # with 1, cuDNN's layout would be another
  before_BL = jnp.pad(segments_BL[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  is_start_BL = (segments_BL != before_BL) & ((segments_BL > 0) | (before_BL < 0))
  places_BL = jnp.where(is_start_BL, jnp.arange(L, dtype=jnp.int32)[None], L)
  places_BL = jnp.pad(jnp.sort(places_BL, axis=1), ((0, 0), (0, M)), constant_values=L)
  starts_BM, ends_BM = places_BL[:, :M], places_BL[:, 1 : M + 1]
  is_there_BM = starts_BM < L
  lengths_BM = jnp.where(is_there_BM, ends_BM - starts_BM, -1)
  starts_BM = jnp.where(is_there_BM, starts_BM, -1)
  # never a start without a length: cuDNN reads both as lists over the whole batch
  starts_BW = jnp.pad(starts_BM, ((0, 0), (0, 1)), constant_values=-1)
  return lengths_BM, starts_BW, is_start_BL.sum(axis=1) <= M


@contextlib.contextmanager
def assuming_hopper() -> Iterator[None]:
  """Within, JAX does not ask the GPU that is here, if any, for the layout of packed documents."""
  ask = fused.check_compute_capability
  fused.check_compute_capability = lambda capability: True
  try:
    yield
  finally:
    fused.check_compute_capability = ask

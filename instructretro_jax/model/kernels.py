"""Softmax attention: the plain form, and what accelerators have for causal sequences."""

from __future__ import annotations

import jax
from jax.experimental.pallas.ops.tpu import splash_attention
import jax.numpy as jnp

from instructretro_jax import sharding
from instructretro_jax.array_types import Array

_SPLASH_BLOCK = 1024  # queries and keys a step; 2048 exceeds the default VMEM limit of v5p


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
  # heads before positions: batched matrix products, where CPUs would else transpose the scores
  q_BGITA = jnp.transpose((q_BTHA * A**-0.5).reshape(B, T, G, H // G, A), (0, 2, 3, 1, 4))
  k_BGUA, v_BGUA = jnp.swapaxes(k_BUGA, 1, 2), jnp.swapaxes(v_BUGA, 1, 2)
  scores = jnp.einsum('bgita,bgua->bgitu', q_BGITA, k_BGUA, preferred_element_type=dtype)
  scores_BHTU = scores.reshape(B, H, T, U)
  if bias is not None:
    scores_BHTU += bias.astype(dtype)
  if mask is not None:
    scores_BHTU = jnp.where(mask, scores_BHTU, jnp.finfo(dtype).min)
  weights = jax.nn.softmax(scores_BHTU, axis=-1).astype(v_BGUA.dtype)
  read_BGITA = jnp.einsum('bgitu,bgua->bgita', weights.reshape(B, G, H // G, T, U), v_BGUA)
  return jnp.transpose(read_BGITA, (0, 3, 1, 2, 4)).reshape(B, T, H, A)


def causal_mask(segments_BL: Array | None, length: int) -> Array:
  """Mask [B or 1, 1, L, L]: earlier or same position, and the same segment where given."""
  mask_11LL = jnp.tril(jnp.ones((length, length), bool))[None, None]
  if segments_BL is None:
    return mask_11LL
  return mask_11LL & (segments_BL[:, None, :, None] == segments_BL[:, None, None, :])


def attend_causally(
  q_BLHA: Array, k_BLGA: Array, v_BLGA: Array, segments_BL: Array | None, kernel: str
) -> Array:
  """Attention to the same and earlier positions of the same segment, [B, L, H, A].

  Args:
    segments_BL: document of each position; None: all are of one.
    kernel: 'dot_product', `attend`; 'splash', Pallas on TPUs, which never forms the scores;
      'cudnn', on NVIDIA GPUs, for float16 and bfloat16.

  Raises ValueError if the length does not suit the splash kernel.
  """
  if kernel == 'splash':
    return attend_by_splash(q_BLHA, k_BLGA, v_BLGA, segments_BL)
  mask_B1LL = causal_mask(segments_BL, q_BLHA.shape[1])
  if kernel == 'cudnn':
    return jax.nn.dot_product_attention(
      q_BLHA, k_BLGA, v_BLGA, mask=mask_B1LL, implementation='cudnn'
    )
  return attend(q_BLHA, k_BLGA, v_BLGA, mask_B1LL)


def attend_by_splash(
  q_BLHA: Array,
  k_BLGA: Array,
  v_BLGA: Array,
  segments_BL: Array | None,
  *,
  interpret: bool = False,
) -> Array:
  """As `attend_causally`; what is saved for the backward pass is named 'attended'.

  Args:
    interpret: run the kernel without a TPU, slowly.

  Raises ValueError if the length is no multiple of 128.
  """
  L = q_BLHA.shape[1]
  if L % 128:
    raise ValueError(f'splash attention takes multiples of 128 tokens, not {L}: dot_product does')
  block = max(b for b in range(128, min(L, _SPLASH_BLOCK) + 1, 128) if L % b == 0)
  sizes = splash_attention.BlockSizes(
    **{name: block for name in ('block_q', 'block_kv', 'block_kv_compute')},
    **{name: block for name in ('block_q_dkv', 'block_kv_dkv', 'block_kv_dkv_compute')},
    use_fused_bwd_kernel=True,
  )

  def of_shard(q_BLHA: Array, k_BLGA: Array, v_BLGA: Array, segments_BL: Array | None) -> Array:
    masks = [splash_attention.CausalMask((L, L))] * q_BLHA.shape[2]
    kernel = splash_attention.make_splash_mha(
      splash_attention.MultiHeadMask(masks),
      block_sizes=sizes,
      head_shards=1,
      q_seq_shards=1,
      residual_checkpoint_name='attended',
      interpret=interpret,
    )

    def of_row(q_LHA: Array, k_LGA: Array, v_LGA: Array, segments_L: Array | None) -> Array:
      ids = None if segments_L is None else splash_attention.SegmentIds(segments_L, segments_L)
      heads_first = (jnp.swapaxes(x, 0, 1) for x in (q_LHA, k_LGA, v_LGA))
      return jnp.swapaxes(kernel(*heads_first, ids), 0, 1)

    return jax.vmap(of_row)(q_BLHA, k_BLGA, v_BLGA, segments_BL)

  heads, kv_heads = ('batch', None, 'act_heads', None), ('batch', None, 'act_kv_heads', None)
  mapped = sharding.over_shards(of_shard, (heads, kv_heads, kv_heads, ('batch', None)), heads)
  return mapped(q_BLHA * q_BLHA.shape[-1] ** -0.5, k_BLGA, v_BLGA, segments_BL)

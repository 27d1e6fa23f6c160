"""Softmax attention: the plain form, and what accelerators have for causal sequences."""

from __future__ import annotations

import jax
from jax.experimental.pallas.ops.tpu import splash_attention
import jax.numpy as jnp

from instructretro_jax.array_types import Array
from instructretro_jax.model import sharding
from instructretro_jax.model.cudnn import attend_by_cudnn

ATTENTIONS = ('dot_product', 'splash', 'cudnn')  # of `attend_causally`

# of queries, which read keys up to their end: with 4 blocks 5/8 of all scores
_CAUSAL_BLOCKS, _LEAST_BLOCK = 4, 128
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
  return _heads_last(_attend(*_heads_first(q_BTHA, k_BUGA, v_BUGA), mask, bias))


def _heads_first(q_BTHA: Array, k_BUGA: Array, v_BUGA: Array) -> tuple[Array, Array, Array]:
  """Scaled queries [B, G, I, T, A], keys and values [B, G, U, A], I = H / G.

  The axes of a product's batch come first, where CPUs would else transpose the scores.
  """
  B, T, H, A = q_BTHA.shape
  G = k_BUGA.shape[2]
  q_BGITA = jnp.transpose((q_BTHA * A**-0.5).reshape(B, T, G, H // G, A), (0, 2, 3, 1, 4))
  return q_BGITA, jnp.swapaxes(k_BUGA, 1, 2), jnp.swapaxes(v_BUGA, 1, 2)


def _heads_last(read_BGITA: Array) -> Array:
  B, G, I, T, A = read_BGITA.shape
  return jnp.transpose(read_BGITA, (0, 3, 1, 2, 4)).reshape(B, T, G * I, A)


def _attend(
  q_BGITA: Array, k_BGUA: Array, v_BGUA: Array, mask: Array | None, bias: Array | None
) -> Array:
  B, G, I, T, _ = q_BGITA.shape
  scores_BHTU = _scores(q_BGITA, k_BGUA).reshape(B, G * I, T, -1)
  if bias is not None:
    scores_BHTU += bias.astype(scores_BHTU.dtype)
  if mask is not None:
    scores_BHTU = _hide(scores_BHTU, mask)
  return _read(scores_BHTU.reshape(B, G, I, T, -1), v_BGUA)


# The products by hand, backwards too, so that nothing of the size of the scores is transposed, and
# the softmax is normalised, forwards and backwards, where it is as narrow as a head
# (Dao et al. 2022, appendix B.2).


@jax.custom_vjp
def _scores(q_BGITA: Array, k_BGUA: Array) -> Array:
  """Products of queries and keys, [B, G, I, T, U], in float32 at least."""
  dtype = jnp.promote_types(q_BGITA.dtype, jnp.float32)
  return jnp.einsum('bgita,bgua->bgitu', q_BGITA, k_BGUA, preferred_element_type=dtype)


def _scores_backward(residuals: tuple[Array, Array], grad_BGITU: Array) -> tuple[Array, Array]:
  q_BGITA, k_BGUA = residuals
  grad = grad_BGITU.astype(q_BGITA.dtype)
  q_grad = jnp.einsum('bgitu,bgua->bgita', grad, k_BGUA)
  return q_grad, jnp.swapaxes(jnp.einsum('bgita,bgitu->bgau', q_BGITA, grad), 2, 3)


_scores.defvjp(lambda q, k: (_scores(q, k), (q, k)), _scores_backward)


@jax.custom_vjp
def _hide(scores_BHTU: Array, mask: Array) -> Array:
  """The scores, as low as can be where the mask is False."""
  return jnp.where(mask, scores_BHTU, jnp.finfo(scores_BHTU.dtype).min)


# As autodiff, but what is kept is the mask as it is, not as large as the scores. In a row that may
# attend nothing a hidden score has a weight, and only the mask stops its gradient.
_hide.defvjp(
  lambda scores, mask: (_hide(scores, mask), mask),
  lambda mask, grad: (jnp.where(mask, grad, 0), None),
)


@jax.custom_vjp
def _read(scores_BGITU: Array, v_BGUA: Array) -> Array:
  """The mean of the values, weighted by the softmax of the scores: [B, G, I, T, A]."""
  return _read_forward(scores_BGITU, v_BGUA)[0]


def _read_forward(scores_BGITU: Array, v_BGUA: Array) -> tuple[Array, tuple[Array, ...]]:
  exp = jnp.exp(scores_BGITU - scores_BGITU.max(axis=-1, keepdims=True))
  scale = 1 / exp.sum(axis=-1, keepdims=True)
  exp = exp.astype(v_BGUA.dtype)
  read = jnp.einsum('bgitu,bgua->bgita', exp, v_BGUA, preferred_element_type=scale.dtype) * scale
  read = read.astype(v_BGUA.dtype)
  return read, (exp, scale, v_BGUA, read)


def _read_backward(residuals: tuple[Array, ...], grad_BGITA: Array) -> tuple[Array, Array]:
  exp, scale, v_BGUA, read = residuals
  mean = (grad_BGITA.astype(scale.dtype) * read).sum(axis=-1, keepdims=True)
  scaled = (grad_BGITA * scale).astype(v_BGUA.dtype)
  v_grad = jnp.einsum('bgita,bgitu->bgau', scaled, exp)
  exp_grad = jnp.einsum('bgita,bgua->bgitu', scaled, v_BGUA, preferred_element_type=scale.dtype)
  return exp * (exp_grad - mean * scale), jnp.swapaxes(v_grad, 2, 3)


_read.defvjp(_read_forward, _read_backward)


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
    kernel: 'dot_product', `attend`; 'splash', Pallas on TPUs; 'cudnn', on NVIDIA GPUs, for
      float16 and bfloat16. The last two never form the scores, nor a mask of their size.

  Raises ValueError if the length does not suit the splash kernel, and what `attend_by_cudnn` does.
  """
  if kernel == 'splash':
    return attend_by_splash(q_BLHA, k_BLGA, v_BLGA, segments_BL)
  if kernel == 'cudnn':
    return attend_by_cudnn(q_BLHA, k_BLGA, v_BLGA, segments_BL)
  mask_B1LL = causal_mask(segments_BL, q_BLHA.shape[1])
  L, most = q_BLHA.shape[1], max(1, min(_CAUSAL_BLOCKS, q_BLHA.shape[1] // _LEAST_BLOCK))
  block = L // max(n for n in range(1, most + 1) if L % n == 0)
  q_BGILA, k_BGLA, v_BGLA = _heads_first(q_BLHA, k_BLGA, v_BLGA)
  read = []
  for start in range(0, L, block):
    stop = start + block
    keys, values = k_BGLA[:, :, :stop], v_BGLA[:, :, :stop]
    mask = mask_B1LL[:, :, start:stop, :stop]
    read.append(_attend(q_BGILA[:, :, :, start:stop], keys, values, mask, None))
  return _heads_last(jnp.concatenate(read, axis=3))


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

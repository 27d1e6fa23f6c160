"""What cuDNN computes of packed documents, with its arguments read as places in memory."""

from __future__ import annotations

import jax
from jax._src.cudnn import fused_attention_stablehlo as fused
import jax.numpy as jnp
import numpy as np


def packed_attention(q, k, v, *, q_seqlen, kv_seqlen, q_offsets, kv_offsets, scale, mask_type):
  """Attention inside of each document, in the place of `fused.dot_product_attention`.

  Lengths and offsets go the way of the library to the kernel, which has them as lists over the
  batch, offsets in elements. What belongs to no document is not written: NaN here.
  """
  assert mask_type == fused.MaskType.PADDING_CAUSAL
  layout = fused.AttentionLayout.BTNH
  lists = (q_seqlen, kv_seqlen, q_offsets, kv_offsets)
  half = [jax.ShapeDtypeStruct(x.shape, jnp.float16) for x in (q, k, v)]  # as a GPU takes them
  fused.check_layout(*half, None, *lists, None, None, layout)
  most = fused.get_max_seg_per_batch(q_offsets)
  assert most > 1 and q_seqlen.shape == (len(q), most)
  fixed = jax.jit(fused._fix_seqlen_offsets)(*lists, q, k)
  lists = [np.asarray(x).ravel().tolist() for x in fixed]
  tokens = lambda x: x.reshape(-1, *x.shape[2:])  # of the whole batch
  q_TNH, k_SGH, v_SGH = tokens(q), tokens(k), tokens(v)
  may_TS = np.zeros((len(q_TNH), len(k_SGH)), bool)
  for q_len, k_len, q_start, k_start in zip(*lists):
    t, q_rest = divmod(q_start, q.shape[2] * q.shape[3])
    s, k_rest = divmod(k_start, k.shape[2] * k.shape[3])
    assert not q_rest and not k_rest and t + q_len <= len(may_TS) and s + k_len <= may_TS.shape[1]
    assert not may_TS[t : t + q_len].any(), 'two documents have one place'
    may_TS[t : t + q_len, s : s + k_len] = np.tril(np.ones((q_len, k_len), bool))
  k_SNH, v_SNH = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=1) for x in (k_SGH, v_SGH))
  scores_NTS = scale * jnp.einsum('tnh,snh->nts', q_TNH, k_SNH)
  weights_NTS = jax.nn.softmax(jnp.where(may_TS, scores_NTS, -1e30))
  read_TNH = jnp.einsum('nts,snh->tnh', weights_NTS, v_SNH)
  return jnp.where(may_TS.any(axis=1)[:, None, None], read_TNH, jnp.nan).reshape(q.shape)

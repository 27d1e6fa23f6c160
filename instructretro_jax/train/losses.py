"""Cross-entropy of next tokens, without all logits in memory at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from instructretro_jax.array_types import Array
from instructretro_jax.sharding import constrain

_BLOCK_LEN = 512  # positions of a sequence whose logits are formed at a time


def token_losses(hidden_BLD: Array, head_DV: Array, targets_BL: Array) -> Array:
  """-log p(target) in nats, [B, L] float32; logits are formed for a block of positions at a time.

  The backward pass forms them again, so peak memory holds one block of [B, block, V].
  """
  length, vocab_size = hidden_BLD.shape[1], head_DV.shape[1]
  block = max(b for b in range(1, min(length, _BLOCK_LEN) + 1) if length % b == 0)

  # narrow and whole in D before the blocks, or a mesh gathers it again for each of them
  head_DV = constrain(head_DV.astype(hidden_BLD.dtype), 'act_embed', 'act_vocab')

  def of_block(hidden_BTD: Array, targets_BT: Array) -> Array:
    dtype = jnp.promote_types(hidden_BTD.dtype, jnp.float32)
    logits_BTV = jnp.einsum('btd,dv->btv', hidden_BTD, head_DV, preferred_element_type=dtype)
    # a mask and a sum, not a gather: the gradient of a gather is a scatter into all logits
    is_target_BTV = jnp.arange(vocab_size)[None, None] == targets_BT[..., None]
    chosen_BT = jnp.where(is_target_BTV, logits_BTV, 0).sum(axis=-1)
    return jax.nn.logsumexp(logits_BTV, axis=-1) - chosen_BT

  if block == length:
    return of_block(hidden_BLD, targets_BL)
  cut = lambda x: jnp.moveaxis(x.reshape(x.shape[0], -1, block, *x.shape[2:]), 1, 0)
  losses = jax.lax.map(lambda x: jax.checkpoint(of_block)(*x), (cut(hidden_BLD), cut(targets_BL)))
  return jnp.moveaxis(losses, 0, 1).reshape(targets_BL.shape)

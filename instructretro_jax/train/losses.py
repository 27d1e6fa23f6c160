"""Cross-entropy of next tokens, without all logits in memory at once.

A block is some positions of every sequence, [X, Z]: X parts of the batch as the mesh splits it, Z
tokens in each.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from instructretro_jax.array_types import Array
from instructretro_jax.model.sharding import constrain, num_parts

# tokens of a part whose logits are formed at a time; with a third of them, the product that gives
# the head's gradient would take twice its time on a TPU, waiting for memory
_BLOCK_TOKENS = 1536


def token_losses(hidden_BLD: Array, head_DV: Array, targets_BL: Array) -> Array:
  """-log p(target) in nats, [B, L] float32; for evaluation: training takes `total_loss`."""
  head_DV = _whole(head_DV, hidden_BLD)

  def of_block(block: tuple[Array, Array]) -> Array:
    hidden_XZD, targets_XZ = block
    logits_XZV = _logits(hidden_XZD, head_DV)
    return jax.nn.logsumexp(logits_XZV, axis=-1) - _of_target(logits_XZV, targets_XZ)

  return _join(jax.lax.map(of_block, (_cut(hidden_BLD), _cut(targets_BL))), targets_BL.shape)


@jax.custom_vjp
def total_loss(hidden_BLD: Array, head_DV: Array, targets_BL: Array, weights_BL: Array) -> Array:
  """The sum of weights times `token_losses`, a scalar; weights are constants.

  A block of logits gives the loss and its gradients at once: the backward pass, which multiplies
  them by a scalar, forms no logits again (2 * D * V FLOPs a token less).
  """
  return (token_losses(hidden_BLD, head_DV, targets_BL) * weights_BL).sum()


def _total_loss_forward(
  hidden_BLD: Array, head_DV: Array, targets_BL: Array, weights_BL: Array
) -> tuple[Array, tuple[Array, Array]]:
  whole_DV = _whole(head_DV, hidden_BLD)

  def add_block(
    sums: tuple[Array, Array], block: tuple[Array, Array, Array]
  ) -> tuple[tuple[Array, Array], Array]:
    loss, head_grad_XDV = sums
    hidden_XZD, targets_XZ, weights_XZ = block
    logits_XZV = _logits(hidden_XZD, whole_DV)
    most_XZ = logits_XZV.max(axis=-1)
    exp_XZV = jnp.exp(logits_XZV - most_XZ[..., None])
    sum_XZ = exp_XZV.sum(axis=-1)
    losses_XZ = most_XZ + jnp.log(sum_XZ) - _of_target(logits_XZV, targets_XZ)
    softmax_XZV = exp_XZV / sum_XZ[..., None]
    grad_XZV = (softmax_XZV - _is_target(logits_XZV, targets_XZ)) * weights_XZ[..., None]
    # the barrier keeps it from being computed in each of the two products
    grad_XZV = jax.lax.optimization_barrier(grad_XZV.astype(whole_DV.dtype))
    head_grad_XDV += jnp.einsum('xzd,xzv->xdv', hidden_XZD, grad_XZV)
    hidden_grad_XZD = jnp.einsum('xzv,dv->xzd', grad_XZV, whole_DV)
    return (loss + (losses_XZ * weights_XZ).sum(), _of_parts(head_grad_XDV)), hidden_grad_XZD

  blocks = tuple(map(_cut, (hidden_BLD, targets_BL, weights_BL)))
  zero = jnp.zeros((), jnp.promote_types(hidden_BLD.dtype, jnp.float32))
  # each part of the batch adds up its own, or a mesh would add them up for each block
  zeros_XDV = _of_parts(jnp.zeros((blocks[0].shape[1], *whole_DV.shape), whole_DV.dtype))
  (loss, head_grad_XDV), hidden_grads = jax.lax.scan(add_block, (zero, zeros_XDV), blocks)
  head_grad_DV = constrain(head_grad_XDV.sum(axis=0), 'embed', 'vocab').astype(head_DV.dtype)
  return loss, (_join(hidden_grads, hidden_BLD.shape), head_grad_DV)


def _total_loss_backward(grads: tuple[Array, Array], scale: Array) -> tuple[Array | None, ...]:
  return *((scale * grad).astype(grad.dtype) for grad in grads), None, None


total_loss.defvjp(_total_loss_forward, _total_loss_backward)


def _whole(head_DV: Array, hidden_BLD: Array) -> Array:
  """The head, narrow and whole in D, or a mesh would gather it again for each block."""
  return constrain(head_DV.astype(hidden_BLD.dtype), 'act_embed', 'act_vocab')


def _of_parts(head_grad_XDV: Array) -> Array:
  return constrain(head_grad_XDV, 'batch', 'act_embed', 'act_vocab')


def _cut(x_BLY: Array) -> Array:
  """The blocks, first, of as many positions as divide L: [L / T, X, Z = B / X * T, ...]."""
  B, L, *rest = x_BLY.shape
  X = num_parts('batch', B)
  T = max(t for t in range(1, L + 1) if L % t == 0 and (t == 1 or B // X * t <= _BLOCK_TOKENS))
  blocks = jnp.moveaxis(x_BLY.reshape(B, L // T, T, *rest), 1, 0)
  return blocks.reshape(L // T, X, -1, *rest)


def _join(blocks: Array, shape: tuple[int, ...]) -> Array:
  """The inverse of `_cut`: [B, L, ...]."""
  B, L, *rest = shape
  return jnp.moveaxis(blocks.reshape(-1, B, L // blocks.shape[0], *rest), 0, 1).reshape(shape)


def _logits(hidden_XZD: Array, head_DV: Array) -> Array:
  dtype = jnp.promote_types(hidden_XZD.dtype, jnp.float32)
  return jnp.einsum('xzd,dv->xzv', hidden_XZD, head_DV, preferred_element_type=dtype)


def _is_target(logits_XZV: Array, targets_XZ: Array) -> Array:
  return jnp.arange(logits_XZV.shape[-1])[None, None] == targets_XZ[..., None]


def _of_target(logits_XZV: Array, targets_XZ: Array) -> Array:
  # a mask and a sum, not a gather, which would make a mesh gather a split vocabulary
  return jnp.where(_is_target(logits_XZV, targets_XZ), logits_XZV, 0).sum(axis=-1)

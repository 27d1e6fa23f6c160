"""Cross-entropy of next tokens, without all logits in memory at once.

A block is T positions of every sequence, [X, Z]: X parts of the batch as the mesh splits it, Z
tokens in each. Positions behind the last, of the last block, are zeros, with target 0 and weight 0.
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
    head_grad_XDV += jnp.einsum(
      'xzd,xzv->xdv', hidden_XZD, grad_XZV, preferred_element_type=head_grad_XDV.dtype
    )
    hidden_grad_XZD = jnp.einsum('xzv,dv->xzd', grad_XZV, whole_DV)
    return (loss + (losses_XZ * weights_XZ).sum(), _of_parts(head_grad_XDV)), hidden_grad_XZD

  blocks = tuple(map(_cut, (hidden_BLD, targets_BL, weights_BL)))
  zero = jnp.zeros((), _wide(hidden_BLD))
  # each part of the batch adds up its own, or a mesh would add them up for each block; in bf16 the
  # sum of 2,000 blocks would be off by 18 %
  zeros_XDV = _of_parts(jnp.zeros((blocks[0].shape[1], *whole_DV.shape), _wide(hidden_BLD)))
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


def _block_len(num_rows: int, length: int) -> int:
  """Positions in a block, T, of a part with that many rows."""
  near_equal = -(-length // min(length, -(-num_rows * length // _BLOCK_TOKENS)))
  fits = lambda t: length % t == 0 and (t == 1 or num_rows * t <= _BLOCK_TOKENS)
  divisor = max(t for t in range(1, length + 1) if fits(t))
  # usual lengths are cut evenly, without padding; a prime one would end in blocks of one position
  return divisor if 2 * divisor >= near_equal else near_equal


def _cut(x_BLY: Array) -> Array:
  """The blocks, first: [L / T, X, Z = B / X * T, ...], L / T rounded up."""
  B, L, *rest = x_BLY.shape
  X = num_parts('batch', B)
  T = _block_len(B // X, L)
  x_BLY = jnp.pad(x_BLY, ((0, 0), (0, -L % T), *((0, 0) for _ in rest)))
  blocks = jnp.moveaxis(x_BLY.reshape(B, -1, T, *rest), 1, 0)
  return blocks.reshape(len(blocks), X, -1, *rest)


def _join(blocks: Array, shape: tuple[int, ...]) -> Array:
  """The inverse of `_cut`: [B, L, ...]."""
  B, L, *rest = shape
  rows = jnp.moveaxis(blocks.reshape(len(blocks), B, -1, *rest), 0, 1)
  return rows.reshape(B, -1, *rest)[:, :L]


def _wide(x: Array) -> jnp.dtype:
  """The type in which sums are taken: float32 at least."""
  return jnp.promote_types(x.dtype, jnp.float32)


def _logits(hidden_XZD: Array, head_DV: Array) -> Array:
  dtype = _wide(hidden_XZD)
  return jnp.einsum('xzd,dv->xzv', hidden_XZD, head_DV, preferred_element_type=dtype)


def _is_target(logits_XZV: Array, targets_XZ: Array) -> Array:
  return jnp.arange(logits_XZV.shape[-1])[None, None] == targets_XZ[..., None]


def _of_target(logits_XZV: Array, targets_XZ: Array) -> Array:
  # a mask and a sum, not a gather, which would make a mesh gather a split vocabulary
  return jnp.where(_is_target(logits_XZV, targets_XZ), logits_XZV, 0).sum(axis=-1)

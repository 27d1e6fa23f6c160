"""Which token comes next: the most likely one, or one drawn from the likeliest.

Every row has settings of its own, and what is drawn depends on its seed and position alone: a
request meets the same draws by itself and in any batch.
"""

from __future__ import annotations

from flax import struct
import jax
import jax.numpy as jnp

from instructretro_jax.array_types import Array

_ONE_AS_BITS = 0x3F800000  # 1.0 in float32; bits of numbers from 0 are ordered as the numbers


@struct.dataclass
class Sampling:
  """How each row chooses; the most likely token where all of it is None.

  A field that no row uses is None, so that nothing of it is computed.
  """

  seed_B: Array | None = None  # with temperatures
  temperature_B: Array | None = None  # 0: the most likely token
  top_k_B: Array | None = None  # how many tokens may be drawn; 0: all
  top_p_B: Array | None = None  # or the fewest with so much probability together; 1: all
  penalty_B: Array | None = None  # of tokens that are there; 1: none


GREEDY = Sampling()


def choose(
  logits_BV: Array, sampling: Sampling, positions_B: Array, used_BV: Array | None = None
) -> Array:
  """The next token of each row, [B].

  Args:
    positions_B: of the token that is chosen, in its row.
    used_BV: True for the tokens that a row has; needed for penalties alone.
  """
  if sampling.penalty_B is not None:
    logits_BV = penalize(logits_BV, used_BV, sampling.penalty_B)
  best_B = jnp.argmax(logits_BV, axis=-1)
  if sampling.temperature_B is None:
    return best_B
  is_drawn_B = sampling.temperature_B > 0
  scale_B = jnp.where(is_drawn_B, sampling.temperature_B, 1)
  probs_BV = jax.nn.softmax(logits_BV / scale_B[:, None], axis=-1)
  if sampling.top_k_B is not None:
    probs_BV = keep_top_k(probs_BV, sampling.top_k_B)
  if sampling.top_p_B is not None:
    probs_BV = keep_top_p(probs_BV, sampling.top_p_B)
  drawn_B = draw(probs_BV, sampling.seed_B, positions_B)
  return jnp.where(is_drawn_B, drawn_B, best_B)


def penalize(logits_BV: Array, used_BV: Array, penalty_B: Array) -> Array:
  """Logits of used tokens divided by the penalty, or multiplied where negative.

  Keskar et al. 2019 (CTRL), section 4.1.
  """
  penalty_B1 = penalty_B[:, None]
  less_BV = jnp.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
  return jnp.where(used_BV, less_BV, logits_BV)


def keep_top_k(probs_BV: Array, k_B: Array) -> Array:
  """Probabilities of the k likeliest tokens and of those equal to the last; 0 for all others."""
  k_B = jnp.where(k_B > 0, k_B, probs_BV.shape[-1])
  return _keep_likeliest(probs_BV, jnp.ones_like(probs_BV), k_B.astype(probs_BV.dtype))


def keep_top_p(probs_BV: Array, p_B: Array) -> Array:
  """Probabilities of the nucleus, 0 for all others (Holtzman et al. 2020, section 3.1).

  The nucleus is the fewest likeliest tokens whose share of all probability is at least p, and
  those equal to the last.
  """
  nucleus_BV = _keep_likeliest(probs_BV, probs_BV, p_B * probs_BV.sum(axis=-1))
  return jnp.where(p_B[:, None] < 1, nucleus_BV, probs_BV)


def _keep_likeliest(probs_BV: Array, weights_BV: Array, enough_B: Array) -> Array:
  """Keeps the likeliest tokens whose weights come to `enough`, by bisection over the threshold.

  A threshold is a float32 between 0 and 1, of which there are fewer than 2^30: 30 sums over V find
  it exactly, where sorting 50 thousand tokens costs more.
  """
  probs_BV = probs_BV.astype(jnp.float32)
  bits_BV = jax.lax.bitcast_convert_type(probs_BV, jnp.int32)

  def halve(_, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    low_B, high_B = bounds  # the weights from `low` on are enough, those from `high` on are not
    middle_B = (low_B + high_B) // 2
    mass_B = jnp.where(bits_BV >= middle_B[:, None], weights_BV, 0).sum(axis=-1)
    is_enough_B = mass_B >= enough_B
    return jnp.where(is_enough_B, middle_B, low_B), jnp.where(is_enough_B, high_B, middle_B)

  bounds = jnp.zeros_like(enough_B, jnp.int32), jnp.full_like(enough_B, _ONE_AS_BITS + 1, jnp.int32)
  threshold_B, _ = jax.lax.fori_loop(0, 30, halve, bounds)
  return jnp.where(bits_BV >= threshold_B[:, None], probs_BV, 0)


def draw(probs_BV: Array, seed_B: Array, positions_B: Array) -> Array:
  """A token of each row by its probabilities, which need not sum to 1 (Gumbel's argmax)."""

  def noise(seed: Array, position: Array) -> Array:
    key = jax.random.fold_in(jax.random.key(seed), position)
    return jax.random.gumbel(key, probs_BV.shape[1:], jnp.float32)

  return jnp.argmax(jnp.log(probs_BV) + jax.vmap(noise)(seed_B, positions_B), axis=-1)

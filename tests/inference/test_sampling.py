"""Choosing tokens, against the slow twins and by frequencies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructretro_jax.inference import sampling
from instructretro_jax.inference.sampling import Sampling, choose
from tests.reference import sampling as reference


def make_probs(rows, size, seed=0, spread=3.0):
  logits = np.random.default_rng(seed).normal(size=(rows, size)).astype(np.float32) * spread
  return np.asarray(jax.nn.softmax(jnp.asarray(logits), axis=-1))


@pytest.mark.parametrize('size', [1, 7, 300])
def test_top_k_is_the_k_likeliest(size):
  probs, k = make_probs(5, size), np.array([0, 1, 2, 6, 400])
  found = sampling.keep_top_k(jnp.asarray(probs), jnp.asarray(k))
  expected = [reference.keep_top_k(row, n) for row, n in zip(probs, k)]
  np.testing.assert_array_equal(found, expected)


def test_equal_tokens_are_kept_together():
  probs = jnp.array([[0.2, 0.3, 0.2, 0.3]])
  np.testing.assert_array_equal(sampling.keep_top_k(probs, jnp.array([1])) > 0, [[0, 1, 0, 1]])
  np.testing.assert_array_equal(sampling.keep_top_p(probs, jnp.array([0.7])) > 0, [[1, 1, 1, 1]])


@pytest.mark.parametrize('size', [1, 7, 300])
def test_top_p_is_the_nucleus(size):
  p = np.array([1e-6, 0.3, 0.9, 0.999, 1.0], np.float32)
  probs = make_probs(len(p), size, spread=1.0)
  found = sampling.keep_top_p(jnp.asarray(probs), jnp.asarray(p))
  expected = [reference.keep_top_p(row, x) for row, x in zip(probs.astype(np.float64), p)]
  np.testing.assert_array_equal(np.asarray(found) > 0, np.array(expected) > 0)
  assert (np.asarray(found[-1]) == probs[-1]).all()  # p = 1 keeps all, rounding or not


def test_penalty_lowers_used_tokens():
  logits = np.array([[2.0, -2.0, 1.0, -1.0]] * 2, np.float32)
  used = np.array([[1, 1, 0, 0], [0, 1, 1, 1]], bool)
  penalty = np.array([1.5, 1.0], np.float32)
  found = sampling.penalize(*map(jnp.asarray, (logits, used, penalty)))
  expected = [reference.penalize(*row) for row in zip(logits, used, penalty)]
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  chosen = choose(jnp.asarray(logits), Sampling(penalty_B=jnp.array([4.0, 1.0])), None, used)
  assert chosen.tolist() == [2, 0]


def test_draws_follow_the_probabilities_and_depend_on_seed_and_position_alone():
  probs, count = make_probs(1, 5, spread=1.0), 4000
  rows = jnp.broadcast_to(jnp.asarray(probs), (count, 5))
  positions = jnp.arange(count)
  drawn = np.asarray(sampling.draw(rows, jnp.full(count, 3), positions))
  shares = np.bincount(drawn, minlength=5) / count
  np.testing.assert_allclose(shares, probs[0], atol=4 * 0.5 / count**0.5)
  alone = sampling.draw(rows[:1], jnp.array([3]), positions[70:71])
  assert alone[0] == drawn[70]
  assert (np.asarray(sampling.draw(rows, jnp.full(count, 4), positions)) != drawn).any()


def test_every_row_has_its_own_settings():
  logits = jnp.log(jnp.asarray(make_probs(1, 50, spread=2.0)))
  order = np.argsort(-np.asarray(logits[0]))
  B = 400
  settings = Sampling(
    seed_B=jnp.arange(B),
    temperature_B=jnp.array([0.0, 1.0, 1.0, 1e-4] * (B // 4)),
    top_k_B=jnp.array([0, 3, 0, 0] * (B // 4)),
    top_p_B=jnp.array([1.0, 1.0, 0.5, 1.0] * (B // 4)),
  )
  chosen = choose(jnp.broadcast_to(logits, (B, 50)), settings, jnp.zeros(B, jnp.int32))
  greedy, three, nucleus, cold = np.asarray(chosen).reshape(-1, 4).T
  assert set(greedy) == set(cold) == {order[0]}
  assert set(three) == set(order[:3])
  probs = np.exp(np.asarray(logits[0], np.float64))
  assert set(nucleus) <= set(np.flatnonzero(reference.keep_top_p(probs, 0.5)))

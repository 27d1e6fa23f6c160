"""The loss in blocks against the plain one."""

from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructretro_jax.precompile import counts, hlo
from instructretro_jax.train import losses


def plain(hidden, head, targets):
  logp = jax.nn.log_softmax(hidden @ head)
  return -jnp.take_along_axis(logp, targets[..., None], -1)[..., 0]


def example(dtype):
  rng = np.random.default_rng(0)
  hidden, head = rng.normal(size=(2, 6, 5)), 3 * rng.normal(size=(5, 7))
  weights = rng.integers(0, 3, (2, 6))
  assert (weights == 0).any()
  return (
    jnp.asarray(hidden, dtype),
    jnp.asarray(head, dtype),
    jnp.asarray(rng.integers(0, 7, (2, 6))),
    jnp.asarray(weights, jnp.float32),
  )


@pytest.mark.parametrize('dtype, atol', [('float32', 1e-5), ('float64', 1e-13)])
@pytest.mark.parametrize('block_tokens', [1, 8, 1536])
def test_blocks_equal_the_whole(monkeypatch, block_tokens, dtype, atol):
  monkeypatch.setattr(losses, '_BLOCK_TOKENS', block_tokens)
  with jax.enable_x64(dtype == 'float64'):
    hidden, head, targets, weights = example(dtype)
    found = losses.token_losses(hidden, head, targets)
    np.testing.assert_allclose(found, plain(hidden, head, targets), atol=atol)
    expected = lambda h, w: 0.5 * (plain(h, w, targets) * weights).sum() ** 2
    total = lambda h, w: 0.5 * losses.total_loss(h, w, targets, weights) ** 2
    values = [jax.value_and_grad(f, (0, 1))(hidden, head) for f in (total, expected)]
    assert total(hidden, head) == pytest.approx(float(values[0][0]), rel=1e-6)
    for a, b in zip(*map(jax.tree.leaves, values), strict=True):
      assert a.dtype == b.dtype == dtype
      np.testing.assert_allclose(a, b, rtol=atol, atol=atol * float(jnp.abs(b).max()))


def step_of(vocab_size, length=3072, width=128, wrt=(0, 1)):
  """The loss and its gradients, compiled."""
  array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  of_tokens = [jax.ShapeDtypeStruct((1, length), dtype) for dtype in (jnp.int32, jnp.float32)]
  function = jax.jit(jax.value_and_grad(losses.total_loss, wrt))
  return function.lower(array(1, length, width), array(width, vocab_size), *of_tokens).compile()


def test_no_product_is_made_twice_nor_for_a_frozen_head():
  products = lambda compiled: counts.count(hlo.parse(compiled.as_text())).matmul_flops
  once = 2 * 3072 * 128 * 4096
  assert products(step_of(4096)) == 3 * once
  assert products(step_of(4096, wrt=0)) == 2 * once


def test_memory_holds_one_block_of_logits():
  length, vocab_size = 8 * 1024, 32_000
  temporary = step_of(vocab_size, length).memory_analysis().temp_size_in_bytes
  assert 0 < temporary < 3 * 1024 * vocab_size * 4 < length * vocab_size * 4 / 2


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(1, 6), st.integers(1, 23), st.integers(1, 40), st.integers(0, 99))
def test_blocks_of_any_length_equal_the_whole(batch, length, block_tokens, seed):
  rng = np.random.default_rng(seed)
  hidden, head = rng.normal(size=(batch, length, 3)), rng.normal(size=(3, 5))
  targets, weights = rng.integers(0, 5, (batch, length)), rng.integers(0, 3, (batch, length))

  @jax.jit
  def in_blocks(*arguments):
    value_and_grads = jax.value_and_grad(losses.total_loss, (0, 1))(*arguments)
    return losses.token_losses(*arguments[:3]), *value_and_grads

  with jax.enable_x64(True), mock.patch.object(losses, '_BLOCK_TOKENS', block_tokens):
    each, total, grads = in_blocks(hidden, head, targets, weights)
  exp = np.exp(hidden @ head)
  softmax = exp / exp.sum(-1, keepdims=True)
  is_target = np.eye(5)[targets]
  expected = -np.log((softmax * is_target).sum(-1))
  grad = (softmax - is_target) * weights[..., None]
  np.testing.assert_allclose(each, expected, atol=1e-12)
  np.testing.assert_allclose(total, (expected * weights).sum(), atol=1e-11)
  np.testing.assert_allclose(grads[0], grad @ head.T, atol=1e-12)
  np.testing.assert_allclose(grads[1], np.einsum('bld,blv->dv', hidden, grad), atol=1e-11)


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 9000))
def test_blocks_are_few_and_none_is_large(rows, length):
  block = losses._block_len(rows, length)
  least = min(length, -(-rows * length // losses._BLOCK_TOKENS))
  assert -(-length // block) <= 2 * least
  assert block == 1 or rows * (block - 1) < losses._BLOCK_TOKENS


def test_usual_lengths_are_cut_evenly():
  for rows, length, block in ((8, 512, 128), (2, 512, 512), (8, 4096, 128), (1, 4096, 1024)):
    assert losses._block_len(rows, length) == block
  assert losses._block_len(8, 2039) == 186  # 11 blocks instead of 2,039


@pytest.mark.parametrize('length', [2039, 2048])
def test_the_gradient_of_a_bf16_head_is_added_up_in_float32(length):
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(rng.normal(size=(8, length, 16)), jnp.bfloat16)
  head = jnp.asarray(0.3 * rng.normal(size=(16, 64)), jnp.float32)
  targets, weights = rng.integers(0, 64, (8, length)), np.ones((8, length), np.float32)
  found = jax.grad(losses.total_loss, 1)(hidden, head, targets, weights)
  logits = jnp.einsum(
    'bld,dv->blv', hidden, head.astype(jnp.bfloat16), preferred_element_type=jnp.float32
  )
  grad = (jax.nn.softmax(logits) - jax.nn.one_hot(targets, 64)).astype(jnp.bfloat16)
  terms = (np.asarray(x, np.float64) for x in (hidden, grad))
  expected = np.einsum('bld,blv->dv', *terms)
  assert found.dtype == jnp.float32
  assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)

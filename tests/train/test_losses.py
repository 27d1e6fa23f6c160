"""The loss in blocks against the plain one."""

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

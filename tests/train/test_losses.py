"""The loss in blocks against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructretro_jax.train import losses


@pytest.mark.parametrize('block_len', [1, 4, 512])
def test_blocks_equal_the_whole(monkeypatch, block_len):
  monkeypatch.setattr(losses, '_BLOCK_LEN', block_len)
  rng = np.random.default_rng(0)
  hidden, head = rng.normal(size=(2, 6, 5)), rng.normal(size=(5, 7))
  targets = rng.integers(0, 7, (2, 6))

  def plain(hidden, head):
    logp = jax.nn.log_softmax(hidden @ head)
    return -jnp.take_along_axis(logp, targets[..., None], -1)[..., 0]

  hidden, head = jnp.asarray(hidden, jnp.float32), jnp.asarray(head, jnp.float32)
  found = losses.token_losses(hidden, head, jnp.asarray(targets))
  np.testing.assert_allclose(found, plain(hidden, head), atol=1e-5)
  grads = jax.grad(lambda h, w: losses.token_losses(h, w, jnp.asarray(targets)).sum(), (0, 1))
  expected = jax.grad(lambda h, w: plain(h, w).sum(), (0, 1))
  for a, b in zip(grads(hidden, head), expected(hidden, head)):
    np.testing.assert_allclose(a, b, atol=1e-5)

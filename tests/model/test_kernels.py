"""Splash attention, interpreted, against the plain form; without and within a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructretro_jax.model.kernels import attend_by_splash, attend_causally, causal_mask
from instructretro_jax.model.sharding import MeshConfig, make_mesh

B, L, A = 2, 256, 32


def make_inputs(num_heads, kv_heads):
  keys = jax.random.split(jax.random.key(0), 4)
  make = lambda key, heads: jax.random.normal(key, (B, L, heads, A))
  segments = jnp.sort(jax.random.randint(keys[3], (B, L), 0, 4), axis=1)
  return make(keys[0], num_heads), make(keys[1], kv_heads), make(keys[2], kv_heads), segments


def value_and_grads(function, q, k, v):
  weights = jnp.cos(jnp.arange(q.size)).reshape(q.shape)
  return jax.value_and_grad(lambda *qkv: (weights * function(*qkv)).sum(), (0, 1, 2))(q, k, v)


MESH = MeshConfig(data=2, fsdp=1, tensor=2)


@pytest.mark.parametrize(
  'length, mesh, with_segments',
  [(L, None, False), (L, None, True), (L, MESH, False), (L, MESH, True), (128, None, True)],
)
def test_splash_equals_plain(length, mesh, with_segments):
  q, k, v, segments = (x[:, :length] for x in make_inputs(num_heads=4, kv_heads=2))
  segments = segments if with_segments else None
  mask = causal_mask(segments, length)
  # the library's, since `attend` has gradients by hand, too
  plain = lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=mask)
  expected = value_and_grads(plain, q, k, v)
  splash = lambda q, k, v: attend_by_splash(q, k, v, segments, interpret=True)
  if mesh is None:
    found = value_and_grads(splash, q, k, v)
  else:
    with jax.set_mesh(make_mesh(mesh, jax.devices()[:4])):
      found = jax.jit(lambda *qkv: value_and_grads(splash, *qkv))(q, k, v)
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
  for a, b in zip(found[1], expected[1]):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_what_splash_cannot_do_is_an_error_in_words():
  q, k, v, _ = make_inputs(num_heads=4, kv_heads=1)
  with pytest.raises(ValueError, match='multiples of 128 tokens, not 200'):
    attend_causally(q[:, :200], k[:, :200], v[:, :200], None, 'splash')
  with (
    jax.set_mesh(make_mesh(MeshConfig(data=2, tensor=2), jax.devices()[:4])),
    pytest.raises(ValueError, match='do not divide over the 2 parts'),
  ):
    attend_causally(q, k, v, None, 'splash')

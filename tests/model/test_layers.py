"""Gradients of parameters that many positions share, in bf16, against sums in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructretro_jax.model.config import DecoderConfig
from instructretro_jax.model.layers import Embedding, Linear, Norm
from instructretro_jax.model.sharding import MeshConfig, make_mesh, put_batch

WIDTH, LENGTH, ROWS = 4, 256, 128  # 32,768 positions
CONFIG = DecoderConfig(
  vocab_size=8,
  num_layers=1,
  width=WIDTH,
  num_heads=1,
  ff_width=WIDTH,
  norm='layernorm',
  positions='learned',
  max_len=LENGTH,
  use_bias=True,
)


def inputs(module):
  rng = np.random.default_rng(0)
  if isinstance(module, Embedding):  # half of all tokens are the first
    return rng.choice(8, p=(0.5, *[0.5 / 7] * 7), size=(ROWS, LENGTH))
  return jnp.asarray(rng.normal(size=(ROWS, LENGTH, WIDTH)), jnp.bfloat16)


def relative_error(found, expected):
  found, expected = (np.asarray(x, np.float64) for x in (found, expected))
  return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def gradients(module, params, x, weights):
  """Of the sum of weights times outputs, each output rounded as it is."""

  @jax.jit
  def loss(params, x, weights):
    y = module.apply({'params': params}, x)
    return (y.astype(weights.dtype) * weights).sum()

  return jax.grad(loss)(params, x, weights)


@pytest.mark.parametrize(
  'make',
  [
    lambda dtype: Linear((WIDTH,), ('embed', 'mlp'), CONFIG),
    lambda dtype: Norm(CONFIG),
    lambda dtype: Embedding(CONFIG, dtype),
  ],
  ids=['linear', 'norm', 'embedding'],
)
def test_sums_over_positions_are_taken_in_float32(make):
  x = inputs(make('bfloat16'))
  shapes = jax.eval_shape(make('bfloat16').init, jax.random.key(0), x)['params']
  rng = np.random.default_rng(1)
  params = {n: rng.normal(size=box.value.shape).astype(np.float32) for n, box in shapes.items()}
  # about 1, as gradients are that do not cancel each other; bf16, as they come from above
  weights = jnp.asarray(1 + rng.normal(size=(ROWS, LENGTH, WIDTH)), jnp.bfloat16)
  found = gradients(make('bfloat16'), params, x, weights.astype(jnp.float32))
  with jax.enable_x64(True):
    wide = lambda a: np.asarray(a, np.float64) if a.dtype in (np.float32, jnp.bfloat16) else a
    arguments = jax.tree.map(wide, (params, x, weights))
    expected = gradients(make('float64'), *arguments)
  for name, grad in jax.device_get(found).items():
    assert grad.dtype == np.float32
    error = relative_error(grad, expected[name])
    assert error < 1e-4, f'{name}: {error}'


def test_the_gradient_of_a_kernel_is_added_up_in_float32_over_a_mesh():
  module = Linear((WIDTH,), ('embed', 'mlp'), dataclasses.replace(CONFIG, use_bias=False))
  x, kernel = inputs(module), np.eye(WIDTH, dtype=np.float32)
  weights = 1 + np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
  mesh = make_mesh(MeshConfig())
  with jax.set_mesh(mesh):
    batch = put_batch({'x': x, 'weights': weights}, mesh, ROWS)
    found = gradients(module, {'kernel': kernel}, batch['x'], batch['weights'])['kernel']
  terms = (np.asarray(a, np.float64) for a in (x, weights.astype(jnp.bfloat16)))
  assert found.dtype == np.float32
  assert relative_error(found, np.einsum('bld,blf->df', *terms)) < 1e-4

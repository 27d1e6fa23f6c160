"""Scanned layers against layers one by one, and what the backward pass keeps."""

import dataclasses

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructretro_jax.model.execution import Execution
from instructretro_jax.model.layer_groups import (
  LayerGroup,
  layer_groups,
  stack_layers,
  unstack_layers,
)
from instructretro_jax.model.remat import REMATS
from instructretro_jax.model.retro import Retro
from tests.model.test_retro import CONFIG, DECODER, init, make_inputs


def with_decoder(**changes):
  retro = {k: changes.pop(k) for k in ('cross_attention_layers',) if k in changes}
  return dataclasses.replace(CONFIG, decoder=dataclasses.replace(DECODER, **changes), **retro)


@pytest.mark.parametrize(
  'num_layers, retro, expected',
  [
    (
      48,
      None,
      [
        LayerGroup(0, (False,), 8),
        LayerGroup(8, (True,)),
        LayerGroup(9, (False, False, True), 13),
      ],
    ),
    (
      24,
      None,
      [LayerGroup(0, (False,), 8), LayerGroup(8, (True,)), LayerGroup(9, (False, False, True), 5)],
    ),
    (4, (1, 3), [LayerGroup(n, (n in (1, 3),)) for n in range(4)]),
    (5, (0, 4), [LayerGroup(0, (True,)), LayerGroup(1, (False,), 3), LayerGroup(4, (True,))]),
    (6, range(6), [LayerGroup(0, (True,)), LayerGroup(1, (True,), 5)]),
  ],
)
def test_groups_that_repeat_are_found(num_layers, retro, expected):
  retro = None if retro is None else tuple(retro)
  config = with_decoder(num_layers=num_layers, cross_attention_layers=retro)
  assert list(layer_groups(config, scan_layers=True)) == expected
  assert len(layer_groups(config, scan_layers=False)) == num_layers
  assert [s.key for s in expected][:1] == ['0_to_7' if num_layers > 6 else expected[0].key]


def value_and_grads(model, params, inputs, gate):
  def loss(params):
    logits = model.apply({'params': params}, *inputs, gate=gate, method='logits')
    return jnp.square(jax.nn.log_softmax(logits)).mean()

  return jax.jit(jax.value_and_grad(loss))(params)


OTHER = dict(parallel_residual=True, norm_placement='output', qk_norm=True)


@pytest.mark.parametrize(
  'gate, changes, remat',
  [(0, OTHER, 'save_block_inputs'), (0.7, {}, 'save_narrow_products')],
  ids=['0-other', '0.7'],
)
def test_scanned_equals_one_by_one(gate, changes, remat):
  config = with_decoder(num_layers=8, cross_attention_layers=(2, 4, 6), **changes)
  scanned = Retro(config, Execution(scan_layers=True, remat=remat))
  inputs = make_inputs(length=13)
  params = init(config, inputs)
  stacked = stack_layers(params, config)
  shapes = jax.eval_shape(lambda: nn.unbox(scanned.init(jax.random.key(0), *inputs)))
  assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes['params'])
  jax.tree.map(np.testing.assert_array_equal, unstack_layers(stacked, config), dict(params))
  loss, grads = value_and_grads(Retro(config), params, inputs, gate)
  found, found_grads = value_and_grads(scanned, stacked, inputs, gate)
  np.testing.assert_allclose(found, loss, rtol=1e-6)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)
  jax.tree.map(close, unstack_layers(found_grads, config), dict(grads))


def test_stacked_parameters_have_a_layers_axis():
  config = with_decoder(num_layers=8, cross_attention_layers=(2, 4, 6))
  scanned, inputs = Retro(config, Execution(scan_layers=True)), make_inputs()
  boxed = jax.eval_shape(lambda: scanned.init(jax.random.key(0), *inputs))['params']
  flat = traverse_util.flatten_dict(boxed, sep='/')
  assert flat['decoder_3_to_6/layer_1/mlp/up/kernel'].names == ('layers', 'embed', 'mlp')
  assert flat['decoder_2/mlp/up/kernel'].names == ('embed', 'mlp')


SMALL = with_decoder(num_layers=2, cross_attention_layers=(1,), norm='layernorm', use_bias=True)


@pytest.mark.slow
def test_remat_changes_no_gradient():
  inputs = make_inputs(length=32, batch=4)
  params = init(SMALL, inputs)
  expected = value_and_grads(Retro(SMALL), params, inputs, 1.0)
  for remat in REMATS:
    found = value_and_grads(Retro(SMALL, Execution(remat=remat)), params, inputs, 1.0)
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)
    jax.tree.map(close, found, expected)


def test_remat_changes_memory():
  inputs = make_inputs(length=32, batch=4)
  params = init(SMALL, inputs)
  kept = {
    remat: saved_bytes(Retro(SMALL, Execution(remat=remat)), params, inputs) for remat in REMATS
  }
  assert list(kept)[0] == 'none' and list(kept)[1:] == sorted(list(kept)[1:], key=kept.get)
  assert kept['none'] > kept['save_all_products']
  assert len(set(kept.values())) == len(REMATS)


def saved_bytes(model, params, inputs):
  """Bytes that the forward pass leaves for the backward pass."""

  def forward(params):
    apply = lambda p: model.apply({'params': p}, *inputs, gate=1.0)
    return jax.vjp(apply, params)[1]

  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(forward, params)))

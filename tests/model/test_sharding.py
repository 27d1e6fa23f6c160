"""Names to mesh axes, and that no mesh changes what is computed."""

import json

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from instructretro_jax.model import sharding
from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.model.retro import Retro
from instructretro_jax.model.sharding import MeshConfig, constrain, local_rows, make_mesh, put_batch
from instructretro_jax.train.state import abstract_params, fresh_params, shardings_of
from instructretro_jax.train.step import loss_of_batch
from tests.golden import make_shardings

CONFIG = RetroConfig(
  decoder=DecoderConfig(
    vocab_size=64,
    num_layers=1,
    width=16,
    num_heads=4,
    ff_width=32,
    qk_norm=True,
    qk_norm_across_heads=True,
    norm_placement='output',
  ),  # fmt: skip
  chunk_len=4,
  encoder_layers=1,
  cross_attention_layers=(0,),
  mask_neighbours=True,
)
MESHES = ((1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 4))


def mesh_of(shape):
  devices = jax.devices()[: int(np.prod(shape))]
  return make_mesh(MeshConfig(*shape), devices)


def batch_of(batch_size):
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 64, (batch_size, 16)).astype(np.int32)
  neighbours = rng.integers(0, 64, (batch_size, 4, 2, 8)).astype(np.int32)
  return {
    'tokens': tokens,
    'targets': np.roll(tokens, -1, axis=1),
    'segments': np.ones_like(tokens),
    'loss_mask': rng.integers(0, 2, tokens.shape).astype(np.float32),
    'neighbours': neighbours,
    'neighbour_mask': rng.random(neighbours.shape) < 0.8,
  }


def test_where_parameters_lie_is_as_it_was():
  golden = json.loads(make_shardings.PATH.read_text())
  assert make_shardings.all_cases() == golden, (
    'parameters, rules or placement changed. If that is meant, look at the difference that '
    '`python -m tests.golden.make_shardings` makes, and commit it.'
  )


def loss_and_grads(shape, params):
  mesh = mesh_of(shape)
  placed = jax.device_put(params, shardings_of(abstract_params(CONFIG, True, mesh)))
  loss = lambda params, batch: (
    loss_of_batch(Retro(CONFIG), params, batch, 1.0) / batch['tokens'].size
  )
  with jax.set_mesh(mesh):
    found = jax.jit(jax.value_and_grad(loss))(placed, put_batch(batch_of(8), mesh, 8))
  return jax.device_get(found)


@pytest.fixture(scope='module')
def on_one_device():
  """Parameters, and loss and gradients as one device computes them."""
  one_device = abstract_params(CONFIG, True, mesh_of(MESHES[0]))
  params = jax.device_get(fresh_params(CONFIG, 0, one_device))
  expected = loss_and_grads(MESHES[0], params)
  assert max(np.abs(g).max() for g in jax.tree.leaves(expected[1])) > 1e-2
  return params, expected


# all axes at once, and in the slow suite each alone
@pytest.mark.parametrize(
  'shape',
  [
    shape if min(shape) > 1 else pytest.param(shape, marks=pytest.mark.slow) for shape in MESHES[1:]
  ],
)
def test_every_mesh_computes_the_same(shape, on_one_device):
  params, expected = on_one_device
  found = loss_and_grads(shape, params)
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
  for a, b in zip(*map(jax.tree.leaves, (found[1], expected[1])), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_unknown_names_are_refused_for_parameters_and_activations():
  mesh = mesh_of((2, 2, 2))
  boxed = {'kernel': nn.LogicallyPartitioned(jnp.zeros((4, 4)), ('embed', 'mpl'))}
  with pytest.raises(ValueError, match=r"\['mpl'\] of \('embed', 'mpl'\) are no logical axes"):
    sharding.param_shardings(boxed, mesh)
  for shape in MESHES:
    with jax.set_mesh(mesh_of(shape)), pytest.raises(ValueError, match='act_embd'):
      jax.jit(lambda x: constrain(x, 'batch', 'act_embd'))(jnp.zeros((4, 4)))
  with pytest.raises(ValueError, match='act_embd'):  # without a mesh, too
    constrain(jnp.zeros((4, 4)), 'batch', 'act_embd')
  with pytest.raises(ValueError):  # one name for two axes
    constrain(jnp.zeros((4, 4)), 'batch')


def test_parts_of_an_axis():
  assert sharding.num_parts('batch', 8) == 1
  with jax.set_mesh(mesh_of((2, 2, 2))):
    parts = [sharding.num_parts(*axis) for axis in (('batch', 8), ('batch', 3), ('vocab', 8))]
    assert [*parts, sharding.num_parts('act_embed', 8)] == [4, 1, 2, 1]


def test_constraints_lay_activations_out():
  x = jnp.arange(64.0).reshape(8, 8)
  laid_out = jax.jit(lambda x: constrain(x, 'batch', 'act_mlp') * 2)
  assert constrain(x, 'batch', 'act_mlp') is x
  with jax.set_mesh(mesh_of((2, 2, 2))):
    y = laid_out(x)
    assert y.sharding.spec == PartitionSpec(('data', 'fsdp'), 'tensor')
    np.testing.assert_array_equal(y, 2 * x)
    # three rows do not divide, so they are whole
    assert laid_out(x[:3]).sharding.spec == PartitionSpec(None, 'tensor')
  with jax.set_mesh(mesh_of((1, 1, 1))):
    assert constrain(x, 'batch', 'act_mlp') is x


def test_a_process_reads_the_rows_that_its_devices_hold():
  mesh = mesh_of((4, 2, 1))
  assert local_rows(mesh, 16).tolist() == list(range(16))
  batch = {'tokens': np.arange(48).reshape(16, 3)}
  several = [{'tokens': batch['tokens'] + n} for n in range(5)]
  found = [np.asarray(b['tokens']) for b in sharding.put_batches(several, mesh, 16)]
  np.testing.assert_array_equal(found, [b['tokens'] for b in several])
  placed = put_batch(batch, mesh, 16)['tokens']
  np.testing.assert_array_equal(placed, batch['tokens'])
  assert placed.sharding.spec == PartitionSpec(('data', 'fsdp'), None)
  assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}

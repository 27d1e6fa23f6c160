"""The state is made, saved and opened in pieces, on whatever mesh there is."""

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.model.execution import Execution
from instructretro_jax.model.sharding import MeshConfig, make_mesh
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.train.checkpoint import Checkpoint, Checkpoints, model_record
from instructretro_jax.train.optimizer import AdamW
from instructretro_jax.train.state import (
  abstract_params,
  abstract_state,
  first_state,
  fresh_params,
  shardings_of,
)

CONFIG = RetroConfig(
  decoder=DecoderConfig(vocab_size=64, num_layers=1, width=16, num_heads=4, ff_width=32),
  chunk_len=4,
  encoder_layers=1,
  cross_attention_layers=(0,),
)
FREEZE_ENCODER = AdamW(learning_rate=1e-3, lr_multipliers=(('^encoder', 0.0),))
KERNEL = 'decoder_0/mlp/up/kernel'


def mesh_of(*shape):
  return make_mesh(MeshConfig(*shape), jax.devices()[: int(np.prod(shape))])


def described_on(mesh):
  params = abstract_params(CONFIG, True, mesh)
  return params, *abstract_state(params, FREEZE_ENCODER, 4)


def made_on(mesh):
  params, abstract, optimizer = described_on(mesh)
  return first_state(fresh_params(CONFIG, 0, params), optimizer, abstract)


@pytest.fixture(scope='module')
def state():
  return made_on(mesh_of(2, 2, 2))


@pytest.fixture(scope='module')
def saved(state, tmp_path_factory):
  """A state of which nothing is 0, and a stage folder that holds it."""
  state = jax.tree.map(lambda x: x + jnp.ones((), x.dtype), state)
  folder = tmp_path_factory.mktemp('stage')
  there = Checkpoints(folder / 'checkpoints')
  there.save(state, model_record(CONFIG, Execution()))
  there.close()
  return state, folder


def test_the_first_state_lies_where_its_description_says(state):
  _, abstract, _ = described_on(mesh_of(2, 2, 2))
  placed = lambda x: (x.shape, x.dtype, x.sharding)
  assert jax.tree.map(placed, state) == jax.tree.map(placed, abstract)
  moments = [optax.tree.get(state.opt_state, name) for name in ('mu', 'nu')]
  for moment in moments:
    assert moment.keys() == state.trainable.keys()
    assert shardings_of(moment) == shardings_of(state.trainable)
  assert tuple(moments[0][KERNEL].sharding.spec) == ('fsdp', 'tensor')
  assert {s.data.shape for s in moments[0][KERNEL].addressable_shards} == {(8, 16)}
  assert state.frozen and all(path.startswith('encoder') for path in state.frozen)


def test_values_do_not_depend_on_the_mesh(state):
  alone = made_on(mesh_of(1, 1, 1))
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(alone), jax.device_get(state))


@pytest.mark.parametrize('shape', [(1, 8, 1), (1, 1, 4), (1, 1, 1)])
def test_a_state_of_one_mesh_opens_on_another(saved, shape):
  state, folder = saved
  _, abstract, _ = described_on(mesh_of(*shape))
  there = Checkpoints(folder / 'checkpoints')
  found, record = there.restore(lambda stacked: abstract)
  there.close()
  assert record == model_record(CONFIG, Execution())
  assert shardings_of(found) == shardings_of(abstract)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(state))


def test_chosen_parameters_open_straight_on_their_devices(saved):
  state, folder = saved
  wanted = traverse_util.flatten_dict(abstract_params(CONFIG, True, mesh_of(1, 4, 2)), sep='/')
  frozen = 'encoder/layer_0/mlp/up/kernel'
  chosen = {path: wanted[path].sharding for path in (KERNEL, frozen)}
  found = Checkpoint(folder).restore(chosen)
  assert shardings_of(found) == chosen
  for path, x in found.items():
    np.testing.assert_array_equal(x, {**state.trainable, **state.frozen}[path])
  trained_alone = {path: wanted[path].sharding for path in state.trainable if path in wanted}
  assert Checkpoint(folder).restore(trained_alone).keys() == trained_alone.keys()
  with pytest.raises(StageError, match=r"has no \['decoder_0/mlp/up/colonel'\]"):
    Checkpoint(folder).restore({'decoder_0/mlp/up/colonel': chosen[KERNEL]})

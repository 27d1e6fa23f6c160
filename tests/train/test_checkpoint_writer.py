"""Imported weights become a checkpoint of the training stage without ever being all in memory."""

import dataclasses
import tracemalloc

from flax import linen as nn
from flax import traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.model.sharding import MeshConfig, make_mesh
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.train import checkpoint_writer
from instructretro_jax.train.lazy_params import LazyArray
from instructretro_jax.train.state import init_params
from tests.checkpoints import load_params

CONFIG = RetroConfig(
  decoder=DecoderConfig(vocab_size=64, num_layers=6, width=512, num_heads=8, ff_width=2048),
  chunk_len=4,
)


def abstract_params(config=CONFIG, with_retrieval=True):
  boxed = jax.eval_shape(lambda: init_params(config, 0, with_retrieval))
  return traverse_util.flatten_dict(nn.unbox(boxed), sep='/')


def value_of(path, shape):
  return np.full(shape, sum(path.encode()) % 251, np.float32)


def lazy_params(config=CONFIG, with_retrieval=True):
  return {
    path: LazyArray(x.shape, np.dtype(np.float32), lambda p=path, s=x.shape: value_of(p, s))
    for path, x in abstract_params(config, with_retrieval).items()
  }


@pytest.mark.parametrize('with_retrieval', [True, False])
def test_training_opens_what_was_written(tmp_path, with_retrieval):
  config = dataclasses.replace(CONFIG, decoder=dataclasses.replace(CONFIG.decoder, width=16,
    ff_width=16))  # fmt: skip
  params = lazy_params(config, with_retrieval)
  mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
  checkpoint_writer.write_checkpoint(tmp_path, config, params, {'vocabulary': 'abc'}, mesh)
  found_config, found, record = load_params(tmp_path)
  assert found_config == config and record['vocabulary'] == 'abc'
  flat = traverse_util.flatten_dict(found, sep='/')
  assert flat.keys() == params.keys()
  for path, x in flat.items():
    np.testing.assert_array_equal(x, value_of(path, params[path].shape))
  # stored as the mesh has it, and opened without it: other machines have other devices
  assert type(flat['decoder_0/mlp/up/kernel']) is np.ndarray
  with ocp.PyTreeCheckpointer() as checkpointer:
    stored = checkpointer.metadata(tmp_path / 'checkpoints' / '0' / 'state').item_metadata.tree
  sharding = stored['trainable']['decoder_0/mlp/up/kernel'].sharding
  assert tuple(sharding.partition_spec) == ('fsdp', 'tensor')


def test_memory_stays_near_the_largest_parameter(tmp_path):
  params = lazy_params()
  size = lambda x: 4 * int(np.prod(x.shape))
  largest, total = max(map(size, params.values())), sum(map(size, params.values()))
  assert total > 20 * largest
  live, most = 0, 0

  def count(x):
    def read():
      nonlocal live, most
      live = sum(a.nbytes for a in jax.live_arrays())
      most = max(most, live)
      return x.read()

    return dataclasses.replace(x, read=read)

  before = sum(a.nbytes for a in jax.live_arrays())
  tracemalloc.start()
  counted = {path: count(x) for path, x in params.items()}
  checkpoint_writer.write_checkpoint(
    tmp_path, CONFIG, counted, {}, make_mesh(MeshConfig(), jax.devices()[:1])
  )
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < total / 5
  assert most - before <= 2 * largest


def test_parameters_that_do_not_fit_write_nothing(tmp_path):
  params = lazy_params()
  params['decoder_0/mlp/up/colonel'] = params.pop('decoder_0/mlp/up/kernel')
  params['final_norm/scale'] = dataclasses.replace(params['final_norm/scale'], shape=(3,))
  with pytest.raises(StageError) as error:
    checkpoint_writer.write_checkpoint(tmp_path / 'stage', CONFIG, params, {})
  for name in ('up/colonel: (512, 2048), expected None', 'up/kernel: None', r'scale: (3,)'):
    assert name in str(error.value)
  assert not (tmp_path / 'stage').exists()

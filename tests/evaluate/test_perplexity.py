"""Kinds of tokens, the interval, and checkpoints over several devices."""

from flax import traverse_util
import jax
import numpy as np
import pytest

from instructretro_jax.evaluate.perplexity import (
  Perplexity,
  _row,
  _sums,
  _token_nats,
  token_categories,
)
from instructretro_jax.evaluate.viewer import shared_spans
from instructretro_jax.examples.tasks import LanguageModel
from instructretro_jax.model.param_groups import without_retrieval
from instructretro_jax.model.sharding import ONE_DEVICE, MeshConfig, local_mesh
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.train.checkpoint import Checkpoint
from instructretro_jax.train.checkpoint_writer import write_checkpoint
from instructretro_jax.train.lazy_params import LazyArray
from tests.inference.test_cache import params_of
from tests.model.test_retro import CONFIG


def test_categories_part_all_targets():
  C, N = 4, 3
  tokens = np.arange(12)[None]
  segments = np.array([[1] * 8 + [2] * 4])
  targets = np.roll(tokens, -1, axis=1)
  mask = np.ones((1, 12), np.float32)
  mask[0, [7, 11]] = 0
  neighbours = np.zeros((1, N, 1, 2 * C), int)
  neighbours[0, 0, 0] = [2, 3, 4, 5, 6, 0, 0, 0]  # shares 4 5 6 with chunk 1, which it serves
  batch = {
    'tokens': tokens,
    'targets': targets,
    'loss_mask': mask,
    'segments': segments,
    'chunk_ids': np.arange(N)[None],
    'neighbours': neighbours,
    'neighbour_mask': np.ones(neighbours.shape, bool),
  }
  found = token_categories(batch)
  assert found['first_chunk'][0].nonzero()[0].tolist() == [0, 1, 2, 8, 9, 10]
  assert found['copyable'][0].nonzero()[0].tolist() == [3, 4, 5]  # targets 4, 5 and 6
  assert found['other'][0].nonzero()[0].tolist() == [6]
  assert found['run_0_3'][0].nonzero()[0].tolist() == [3, 4, 5, 6]
  total = found['first_chunk'] ^ found['copyable'] ^ found['other']
  np.testing.assert_array_equal(total, found['all'])


def test_row_is_the_token_mean_with_a_sequence_interval():
  nats = np.array([[1.0, 3.0], [2.0, 2.0], [0.0, 1.0]])
  mask = np.array([[1, 1], [1, 0], [0, 1]], bool)
  row = _row(nats * mask, mask, 2 * mask)
  assert row['tokens'] == 4 and row['nats'] == pytest.approx(7 / 4)
  assert row['low'] < row['perplexity'] < row['high']
  assert row['bits_per_byte'] == pytest.approx(7 / 4 / np.log(2) / 2, abs=1e-4)
  assert _row(nats, np.zeros_like(mask), None) is None
  assert _sums(nats, mask) == {'nats': [4.0, 2.0, 1.0], 'tokens': [2, 1, 1]}


def test_devices_that_share_a_checkpoint_find_what_one_finds(tmp_path):
  flat = traverse_util.flatten_dict(jax.tree.map(np.asarray, params_of(CONFIG)), sep='/')
  lazy = {path: LazyArray(x.shape, x.dtype, lambda x=x: x) for path, x in flat.items()}
  write_checkpoint(tmp_path, CONFIG, lazy, {'vocabulary': 'none'})
  B, N, C, K = 3, 4, CONFIG.chunk_len, 2
  draw = np.random.default_rng(0).integers
  batch = {
    'tokens': draw(0, 32, (B, N * C)),
    'targets': draw(0, 32, (B, N * C)),
    'loss_mask': np.ones((B, N * C), np.float32),
    'segments': np.ones((B, N * C), np.int32),
    'neighbours': draw(0, 32, (B, N, K, 2 * C)),
    'neighbour_mask': np.ones((B, N, K, 2 * C), bool),
  }
  found = []
  for mesh in (ONE_DEVICE, MeshConfig(data=2, fsdp=1, tensor=2)):
    devices = local_mesh(mesh)
    model, params = Checkpoint(tmp_path).load_for_use(devices)
    assert {len(x.addressable_shards) for x in jax.tree.leaves(params)} == {devices.size}
    with jax.set_mesh(devices):
      found.append(_token_nats(model, params, batch, True, batch_size=2))
  np.testing.assert_allclose(*found, rtol=1e-5)


def test_shared_spans():
  assert shared_spans([9, 1, 2, 3, 4, 5, 9], [0, 1, 2, 3, 4, 5]) == [(1, 6)]
  assert shared_spans([1, 2, 3], [1, 2, 3]) == []


def test_the_viewed_arm_has_an_encoder(tmp_path):
  params = without_retrieval(params_of(CONFIG))
  flat = traverse_util.flatten_dict(jax.tree.map(np.asarray, params), sep='/')
  lazy = {path: LazyArray(x.shape, x.dtype, lambda x=x: x) for path, x in flat.items()}
  write_checkpoint(tmp_path / 'gpt', CONFIG, lazy, {'vocabulary': 'none'})
  fields = {
    'arms': ('gpt',),
    'task': LanguageModel(seq_len=8, num_neighbours=2),
    'num_sequences': 1,
  }
  with pytest.raises(StageError, match='gpt has no encoder'):
    Perplexity(viewed_arm='gpt', **fields).build(tmp_path, tmp_path / 'perplexity')
  with pytest.raises(ValueError, match="viewed_arm='retro' is none of"):
    Perplexity(viewed_arm='retro', **fields)

"""Checkpoints in a store: what is whole, what is kept, what a kill leaves."""

import contextlib

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from instructretro_jax.pipeline import manifest, paths
from instructretro_jax.pipeline.atomic import WHOLE
from instructretro_jax.train import checkpoint_place
from instructretro_jax.train.checkpoint import Checkpoints
from instructretro_jax.train.checkpoint_place import complete_steps
from instructretro_jax.train.keep import Keep
from instructretro_jax.train.step import TrainState

RECORD = {'execution': {'scan_layers': False}, 'data': 7}


def state_of(step):
  sharding = NamedSharding(jax.make_mesh((2,), ('data',)), PartitionSpec('data'))
  put = lambda x: jax.device_put(np.full(8, x, np.float32), sharding)
  trainable = {'kernel': put(step), 'bias': put(-step)}
  return TrainState(
    step=jax.numpy.int32(step), trainable=trainable, frozen={}, opt_state={'mu': put(step / 2)}
  )


def abstract(stacked):
  describe = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
  return jax.tree.map(describe, state_of(0))


def opened(store):
  return contextlib.closing(Checkpoints(store / 'arm' / 'checkpoints', Keep(last=2)))


def save(store, *steps):
  with opened(store) as checkpoints:
    for step in steps:
      checkpoints.save(state_of(step), RECORD)


def test_the_last_are_kept_and_the_latest_is_restored(store):
  save(store, 1, 2, 3)
  assert complete_steps(store / 'arm' / 'checkpoints') == [2, 3]
  with opened(store) as checkpoints:
    state, record = checkpoints.restore(abstract)
  assert record == RECORD
  jax.tree.map(np.testing.assert_array_equal, state, state_of(3))
  save(store, 4)
  assert complete_steps(store / 'arm' / 'checkpoints') == [3, 4]


@pytest.mark.slow(minutes=0.5)
def test_one_that_is_not_whole_is_not_there(store):
  save(store, 1, 2)
  folder = store / 'arm' / 'checkpoints'
  paths.remove(folder / f'2{WHOLE}')
  paths.remove(folder / '2' / 'commit_success.txt')
  assert complete_steps(folder) == [1]
  with opened(store) as checkpoints:
    state, _ = checkpoints.restore(abstract)
    assert int(state.step) == 1
    checkpoints.save(state_of(2), RECORD)
  assert complete_steps(folder) == [1, 2]


@pytest.mark.slow(minutes=0.5)
def test_one_that_is_damaged_is_set_aside(store, capsys):
  save(store, 1, 2)
  folder = store / 'arm' / 'checkpoints'
  manifest.write_text(folder / '2' / 'record' / 'metadata', '{')
  with opened(store) as checkpoints:
    state, _ = checkpoints.restore(abstract)
  assert int(state.step) == 1 and complete_steps(folder) == [1]
  assert f'it is moved to {store}/arm/logs/damaged/2' in capsys.readouterr().err
  assert (store / 'arm' / 'logs' / 'damaged' / '2' / 'record' / 'metadata').exists()


def test_several_processes_are_refused_where_orbax_does_not_write(store, monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  if str(store).startswith('gs://'):
    assert checkpoint_place.Place(store).for_orbax.as_posix() == str(store)
  else:
    with pytest.raises(manifest.StageError, match='give a --root on gs:// or a folder'):
      checkpoint_place.Place(store)

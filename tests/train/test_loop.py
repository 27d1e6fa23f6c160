"""The training stage: what it refuses, and where its data begins."""

import dataclasses
import json
import shutil

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from instructretro_jax.examples.sequences import example_ids
from instructretro_jax.examples.tasks import Task
from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.model.execution import Execution
from instructretro_jax.model.sharding import MeshConfig
from instructretro_jax.pipeline import manifest
from instructretro_jax.train import compiled_step, loop
from instructretro_jax.train.checkpoint_writer import write_checkpoint
from instructretro_jax.train.lazy_params import LazyArray
from instructretro_jax.train.mesh import training_mesh
from instructretro_jax.train.optimizer import AdamW
from instructretro_jax.train.state import init_params
from tests.checkpoints import load_params

MODEL = RetroConfig(
  decoder=DecoderConfig(vocab_size=320, num_layers=1, width=8, num_heads=2, ff_width=8),
  chunk_len=4,
  cross_attention_layers=(0,),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountingTask(Task):
  """Examples that are their own number, many times."""

  seq_len: int = 8

  def reads(self):
    return ('vocabulary',)

  def gives_neighbours(self, is_open):
    return is_open

  def source(self, root, split, chunk_len=None):
    return self

  def __len__(self):
    return 100

  def examples(self, ids):
    tokens = np.repeat(np.asarray(ids, np.int32)[:, None], 8, axis=1)
    ones = np.ones_like(tokens)
    return {
      'tokens': tokens, 'targets': tokens, 'segments': ones, 'loss_mask': ones.astype(np.float32)
    }  # fmt: skip


@pytest.fixture
def root(tmp_path, monkeypatch, one_device):
  class Vocab:
    vocab_size = 300
    pad_id = 0

  monkeypatch.setattr(loop.vocabulary, 'load', lambda folder: Vocab())
  monkeypatch.setattr(loop.vocabulary, 'fingerprint', lambda vocab: 'v')
  seen = tmp_path / 'seen'

  def batches(source, **kwargs):
    ids = example_ids(kwargs['seed'], len(source), np.arange(kwargs['start'], kwargs['stop']))
    seen.write_text(json.dumps(ids.tolist()))
    size = kwargs['batch_size']
    for start in range(0, len(ids), size):
      yield source.examples(ids[start : start + size])

  monkeypatch.setattr(loop, 'batches', batches)
  return tmp_path


def params_of(config):
  """Drawn parameters by path, as an importer gives them."""
  flat = traverse_util.flatten_dict(nn.unbox(init_params(config, 0, True)), sep='/')
  read = lambda x: LazyArray(x.shape, np.dtype(x.dtype), lambda: np.asarray(x))
  return {path: read(x) for path, x in flat.items()}


def train(root, name, **changes):
  fields = dict(
    name=name, task=CountingTask(), model=MODEL, num_steps=4, batch_size=8, gate=0.0,
    optimizer=AdamW(learning_rate=1e-3), checkpoint_every=2,
  )  # fmt: skip
  stage = loop.Train(**fields | changes)
  counts = stage.build(root, root / name)
  return counts, json.loads((root / 'seen').read_text())


def test_an_epoch_of_less_than_a_batch_is_refused(root):
  with pytest.raises(manifest.StageError, match='has 100 examples, too few for one batch of 104'):
    train(root, 'large', batch_size=104)


def test_a_fit_continues_the_stream_of_its_gpt(root):
  _, first = train(root, 'gpt', data_seed=5)
  _, behind = train(root, 'fit', data_seed=5, init_from='gpt', continue_data=True)
  _, whole = train(root, 'long', data_seed=5, num_steps=8)
  assert first + behind == whole
  assert not set(first) & set(behind)
  with pytest.raises(manifest.StageError, match='another order: data_seed is 5 there and 6 here'):
    train(root, 'other', data_seed=6, init_from='gpt', continue_data=True)
  with pytest.raises(manifest.StageError, match='another order: seq_len is 8 there and 16 here'):
    task = CountingTask(seq_len=16)
    train(root, 'longer', data_seed=5, init_from='gpt', continue_data=True, task=task)
  with pytest.raises(ValueError, match='needs init_from'):
    train(root, 'alone', continue_data=True)


def test_batches_that_devices_would_compute_whole_are_refused(root, capsys, monkeypatch):
  monkeypatch.setattr(loop, 'training_mesh', training_mesh)
  eight = MeshConfig(data=8)
  with pytest.raises(manifest.StageError, match='a batch of 12 cannot be split.* size of 8 or 16'):
    train(root, 'uneven', mesh=eight, batch_size=12)
  with pytest.raises(manifest.StageError, match='in 16 microbatches cannot be split'):
    train(root, 'parts', mesh=eight, batch_size=16, num_microbatches=16)
  with pytest.raises(manifest.StageError, match=r'does not divide heads \(2\)'):
    train(root, 'heads', mesh=MeshConfig(data=1, tensor=8))
  train(root, 'small', batch_size=2, num_steps=1)
  assert 'a batch of 2 is split over 2 of 8 devices' in capsys.readouterr().err


def test_scanned_layers_train_alike(root):
  """Retro-fits of one GPT, with layers one by one and scanned: the same parameters."""
  decoder = dataclasses.replace(MODEL.decoder, num_layers=4)
  deep = dataclasses.replace(MODEL, decoder=decoder, cross_attention_layers=(1,))
  train(root, 'gpt', model=deep, execution=Execution(scan_layers=True), num_steps=2)
  for name in ('scanned', 'single'):
    execution = Execution(scan_layers=name == 'scanned')
    train(root, name, model=deep, execution=execution, init_from='gpt', num_steps=2)
  assert 'decoder_2_to_3' in load_tree(root / 'scanned')
  (config, params, _), (other, expected, _) = (load_params(root / n) for n in ('scanned', 'single'))
  assert config == other
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, expected)


def load_tree(folder):
  """First parts of the paths of the parameters as they are saved."""
  with ocp.StandardCheckpointer() as checkpointer:
    state = checkpointer.metadata(folder.absolute() / 'checkpoints' / '2' / 'state')
  return {path.split('/')[0] for path in state.item_metadata.tree['trainable']}


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(root):
  train(root, 'narrow', execution=Execution(dtype='bfloat16'))
  train(root, 'wide')
  losses = {
    name: [json.loads(line)['loss'] for line in (root / name / 'logs/metrics.jsonl').open()]
    for name in ('narrow', 'wide')
  }
  assert losses['narrow'] != losses['wide']
  np.testing.assert_allclose(losses['narrow'], losses['wide'], rtol=0.02)
  params = load_params(root / 'narrow')[1]
  assert {str(x.dtype) for x in jax.tree.leaves(params)} == {'float32'}


@pytest.mark.parametrize(
  'changes',
  [
    {'num_steps': 0},
    {'num_steps': -3},
    {'checkpoint_every': 0},
    {'batch_size': 0},
    {'num_microbatches': 0},
    {'gate': float('nan')},
    {'gate': -1.0},
    {'keep_retro': True},
  ],
)
def test_values_that_mean_nothing_are_refused_where_they_are_given(root, changes):
  (name,) = changes
  with pytest.raises(ValueError, match=f'gpt: .*{name.removesuffix("_retro")}'):
    train(root, 'gpt', **changes)


@pytest.mark.parametrize(
  'switch',
  [
    {'encoder_rotary': True},
    {'cross_attention_rotary': True},
    {'value_shift': 1},
    {'mask_neighbours': True},
    {'chunk_len': 8},
    {'encoder_residual': 'normed'},
  ],
)
def test_a_retrieval_part_with_another_switch_is_not_taken_over(root, switch):
  # its parameters have the same names and shapes, and compute something else
  write_checkpoint(root / 'retro', MODEL, params_of(MODEL), {'vocabulary': 'v'})
  (name,) = switch
  with pytest.raises(manifest.StageError, match=f'retro has another retrieval part: {name} is'):
    train(
      root, 'fit', init_from='retro', keep_retro=True, model=dataclasses.replace(MODEL, **switch)
    )


def test_there_must_be_an_encoder_to_keep(root):
  train(root, 'gpt')
  with pytest.raises(manifest.StageError, match='gpt has no encoder .*keep_retro = False'):
    train(root, 'fit', init_from='gpt', keep_retro=True)
  assert not (root / 'fit' / 'checkpoints').exists() or not any(
    (root / 'fit/checkpoints').iterdir()
  )


def poison(monkeypatch, name, value):
  """From step 4 on a metric has a value that is no number."""
  step_of = compiled_step.make_train_step

  def poisoned(*args):
    step = step_of(*args)

    def run(state, batch):
      state, metrics = step(state, batch)
      return state, metrics | {name: jnp.where(state.step >= 4, value, metrics[name])}

    return run

  monkeypatch.setattr(compiled_step, 'make_train_step', poisoned)


def test_a_last_gradient_that_is_not_finite_is_not_saved(root, monkeypatch):
  poison(monkeypatch, 'grad_norm', np.inf)
  with pytest.raises(manifest.StageError, match='norm of the gradient of step 4 is inf. Last good'):
    train(root, 'gpt', num_steps=4)
  assert loop.Checkpoints(root / 'gpt' / 'checkpoints').latest_step() == 2


def test_a_loss_that_is_not_finite_names_step_and_last_good_checkpoint(root, monkeypatch):
  poison(monkeypatch, 'loss', np.nan)
  with pytest.raises(manifest.StageError, match=r'step 4 is nan. Last good checkpoint: step 2, in'):
    train(root, 'gpt', num_steps=9)
  assert loop.Checkpoints(root / 'gpt' / 'checkpoints').latest_step() == 2


def cut(folder):
  for path in (p for p in folder.rglob('*') if p.is_file()):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_metadata(folder):
  for path in folder.rglob('_METADATA'):
    path.unlink()


@pytest.mark.parametrize('damage', [cut, without_metadata])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(root, capsys, damage):
  whole, _ = train(root, 'whole', num_steps=6)
  shutil.copytree(root / 'whole', root / 'damaged')
  damage(root / 'damaged' / 'checkpoints' / '6')
  again, _ = train(root, 'damaged', num_steps=6)
  assert again['params_sha256'] == whole['params_sha256']
  assert (root / 'damaged' / 'logs' / 'damaged' / '6').exists()
  assert 'checkpoints/6 cannot be read' in capsys.readouterr().err


def test_where_no_checkpoint_can_be_read_nothing_is_trained_anew_in_silence(root):
  train(root, 'gpt')
  for folder in (root / 'gpt' / 'checkpoints').iterdir():
    cut(folder)
  with pytest.raises(manifest.StageError, match='there is none before it: train again'):
    train(root, 'gpt')


@pytest.mark.parametrize('damage', [cut, without_metadata])
def test_readers_name_a_damaged_checkpoint(root, damage):
  train(root, 'gpt')
  damage(root / 'gpt' / 'checkpoints' / '4')
  with pytest.raises(manifest.StageError, match='checkpoints/4 cannot be read .*: remove'):
    load_params(root / 'gpt')

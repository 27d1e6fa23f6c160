"""Abstract steps against real ones, and their figures, on 8 CPU devices that stand for chips."""

import dataclasses
import functools
import json
import types

from click.testing import CliRunner
import jax
from jax._src.cudnn import fused_attention_stablehlo as fused
import numpy as np
import pytest

from instructretro_jax import main
from instructretro_jax.examples.instructions import Instructions
from instructretro_jax.examples.sequences import Sequences
from instructretro_jax.examples.tasks import InstructionTuning, LanguageModel
from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.model.sharding import MeshConfig, make_mesh
from instructretro_jax.pipeline import manifest
from instructretro_jax.pipeline.experiment import Experiment
from instructretro_jax.precompile import counts, estimate, hlo, steps, topology
from instructretro_jax.questions.passage import untitled
from instructretro_jax.questions.passage_windows import PassageNeighbours
from instructretro_jax.questions.questions import Question
from instructretro_jax.train import loop
from instructretro_jax.train.gates import random_gates
from instructretro_jax.train.optimizer import AdamW
from instructretro_jax.train.state import abstract_state, first_state
from tests.text.byte_vocabulary import ByteVocabulary

C = 8
MODEL = RetroConfig(
  decoder=DecoderConfig(
    vocab_size=96, num_layers=2, width=32, num_heads=4, ff_width=64, tie_embeddings=False
  ),
  chunk_len=C,
  cross_attention_layers=(1,),
)
EIGHT = topology.Topology('h100', (1, 8))
OPEN = LanguageModel(seq_len=4 * C, neighbours='neighbours')


def arm(name, task=OPEN, gate=1.0, **changes):
  fields = dict(
    name=name,
    task=task,
    model=MODEL,
    optimizer=AdamW(learning_rate=1e-3),
    num_steps=4,
    batch_size=8,
    gate=gate,
    mesh=MeshConfig(data=2, fsdp=2, tensor=2),
  )
  return loop.Train(**fields | changes)


def mesh_of(arm):
  return make_mesh(arm.mesh)


@functools.cache
def figures(arm, step='train'):
  mesh = mesh_of(arm)
  return estimate.estimate(steps.make_step(arm, step, mesh), mesh, EIGHT)


def test_the_abstract_state_is_that_of_training(tmp_path):
  fit = arm('fit', optimizer=AdamW(learning_rate=1e-3, lr_multipliers=(('norm', 0.0),)))
  mesh = mesh_of(fit)
  abstract = steps.make_step(fit, 'train', mesh).arguments[0]
  with jax.set_mesh(mesh):
    params = fit._initializer('').params(mesh, None)
    state = first_state(params, abstract_state(params, fit.optimizer, 4)[1], abstract)
  describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert describe(abstract) == describe(state)
  same = lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim)
  assert all(jax.tree.leaves(jax.tree.map(same, abstract.trainable, state.trainable)))
  adam = next(part for part in abstract.opt_state if hasattr(part, 'mu'))
  for moments in (adam.mu, adam.nu):
    assert {k: x.sharding for k, x in moments.items()} == {
      k: x.sharding for k, x in abstract.trainable.items()
    }
  assert any('fsdp' in x.sharding.spec for x in adam.mu.values())


def test_the_abstract_batch_is_that_of_the_data():
  class Store:
    chunk_len = C
    length = np.full(20, C)
    tokens = np.ones((20, C), np.int64)

    def __len__(self):
      return 20

    def documents(self, chunks):
      return np.zeros_like(chunks)

    def neighbour_tokens(self, ids, pad_id):
      shape = (*ids.shape, 2 * C)
      return np.ones(shape, np.int32), np.ones(shape, bool)

  class Table:
    def ids(self, chunks, k):
      return np.zeros((*chunks.shape, k), np.int64)

  source = Sequences(Store(), OPEN.seq_len, 0, Store(), Table(), OPEN.num_neighbours)
  real = loop._for_model(source.examples(np.arange(8) % 2))
  fit = arm('fit')
  abstract = steps.abstract_batch(fit, mesh_of(fit), 8)
  describe = lambda batch: {name: (x.shape, x.dtype) for name, x in batch.items()}
  assert describe(abstract) == describe(real)
  assert all(x.sharding.spec[0] == ('data', 'fsdp') for x in abstract.values())


@pytest.mark.parametrize('gate', [0.0, 1.0, 'random'])
def test_the_abstract_batch_is_that_of_the_questions(gate):
  vocab, question = ByteVocabulary(), Question('q', 'Why?', untitled('P'), ('so',), 'own', 'given')
  neighbours = PassageNeighbours(vocab, C, 2) if gate else None
  source = Instructions([question], vocab, 32 * C, neighbours=neighbours)
  real = source.examples(np.zeros(8, np.int64))
  if gate == 'random':
    real['gate'] = random_gates(0, np.arange(8))
  tuned = arm('tuned', InstructionTuning(seq_len=32 * C), gate)
  abstract = steps.abstract_batch(tuned, mesh_of(tuned), 8)
  describe = lambda batch: {name: (x.shape, x.dtype) for name, x in batch.items()}
  assert describe(abstract) == describe(real)


def test_figures_of_a_train_step():
  found = figures(arm('fit'))
  assert found['fits'] and found['peak_bytes'] > found['argument_bytes'] > 0
  # all of it is split 8 ways, and nothing recomputed; attention is computed in full here
  assert found['flops'] == pytest.approx(found['model_flops_masked'], rel=1e-6)
  assert 0 < found['mfu_lower'] < found['mfu_upper'] < 1
  assert found['collectives']['all-gather']['bytes'] > 0
  assert found['kind'] == 'static estimate' and 'uncalibrated' in found['label']


def test_instruction_tuning_with_a_closed_gate_compiles_to_the_gpt():
  task = InstructionTuning(seq_len=4 * C)
  rates = AdamW(learning_rate=1e-3, lr_multipliers=(('encoder|cross_attention', 0.0),))
  gpt = figures(arm('gpt', task, 0.0))
  retro = figures(
    arm('retro', task, 0.0, keep_retro=True, init_from='fit', optimizer=rates), 'instruct'
  )
  assert retro['parameters'] > retro['trained_parameters'] == gpt['parameters']
  assert retro['flops'] == gpt['flops'] and retro['model_flops'] == gpt['model_flops']
  assert retro['collectives'] == gpt['collectives']


def test_a_frozen_decoder_has_no_moments():
  rates = (('encoder|cross_attention', 1.0), ('', 0.0))
  frozen = figures(arm('frozen', optimizer=AdamW(learning_rate=1, lr_multipliers=rates)))
  trained = figures(arm('fit'))
  assert frozen['parameters'] == trained['parameters'] > frozen['trained_parameters']
  assert frozen['argument_bytes'] < trained['argument_bytes']
  assert frozen['model_flops'] < trained['model_flops']


@pytest.mark.parametrize('gate', [0.0, 1.0])
def test_a_decode_step_has_a_cache_and_no_moments(gate):
  found = figures(arm('fit', gate=gate), 'decode')
  assert found['trained_parameters'] == 0
  assert found['argument_bytes'] < figures(arm('fit'))['argument_bytes'] / 2
  # a projection of the encoder is not split over the heads
  assert 1 <= found['flops_over_model_flops'] < (1.05 if gate else 1 + 1e-6)


def test_which_arm_a_step_is_of():
  stages = (
    arm('gpt', LanguageModel(seq_len=8), 0.0),
    arm('fit'),
    arm('tuned', InstructionTuning(seq_len=8), 0.0),
  )
  experiment = Experiment.__new__(Experiment)
  object.__setattr__(experiment, 'stages', stages)
  assert steps.find_arm(experiment, 'train').name == 'fit'
  assert steps.find_arm(experiment, 'instruct').name == 'tuned'
  assert steps.find_arm(experiment, 'train', 'gpt').name == 'gpt'
  with pytest.raises(manifest.StageError, match="no arm 'nobody'.*'gpt', 'fit', 'tuned'"):
    steps.find_arm(experiment, 'train', 'nobody')


def test_a_batch_that_cannot_be_split_is_refused():
  with pytest.raises(manifest.StageError, match='a batch of 6 cannot be split over 4 devices'):
    steps.make_step(arm('fit'), 'train', mesh_of(arm('fit')), batch_size=6)
  with pytest.raises(manifest.StageError, match='in 4 microbatches cannot be split.* size of 16'):
    steps.make_step(arm('fit', num_microbatches=4), 'train', mesh_of(arm('fit')))
  wide = arm('wide', mesh=MeshConfig(data=1, tensor=8))
  with pytest.raises(
    manifest.StageError, match=r'tensor 8 of the mesh does not divide heads \(4\)'
  ):
    steps.make_step(wide, 'train', mesh_of(wide))


def test_microbatches_are_split_over_the_devices():
  found = figures(arm('fit', gate=0.0, batch_size=16, num_microbatches=4))
  assert found['flops'] == pytest.approx(found['model_flops_masked'], rel=1e-6)


@pytest.mark.parametrize('kv_heads', [2, 6])
def test_key_value_heads_that_divide_the_devices_leave_the_attention_split(kv_heads):
  """What the check of `train.mesh` rests on: with 6 heads on 4 devices, half of it is whole."""
  decoder = dataclasses.replace(MODEL.decoder, num_heads=12, width_per_head=4, ff_width=32)

  def step_of(kv_heads):
    model = dataclasses.replace(MODEL, decoder=dataclasses.replace(decoder, num_kv_heads=kv_heads))
    mesh, task = MeshConfig(data=2, tensor=4), LanguageModel(seq_len=16 * C)
    fit = arm('fit', task, 0.0, model=model, batch_size=2, mesh=mesh)
    return steps._train_step(fit, mesh_of(fit), 2), mesh_of(fit)

  step, mesh = step_of(kv_heads)
  found = counts.count(hlo.parse(step.lower(mesh).compile().as_text())).flops
  one_each = step_of(4)[0].model_flops_masked / 8
  assert found == one_each if kv_heads == 2 else found > 1.5 * one_each


def test_a_step_without_room_does_not_fit(monkeypatch):
  class Lowered:
    def compile(self):
      raise jax.errors.JaxRuntimeError(
        'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space '
        'hbm. Used 97.46G of 95.73G hbm. Exceeded hbm capacity by 1.73G.'
      )

  monkeypatch.setattr(steps.Step, 'lower', lambda self, mesh: Lowered())
  found = figures.__wrapped__(arm('fit'))
  assert found['fits'] is False and found['peak_bytes'] == int(97.46 * 2**30)
  assert found['floor_seconds'] is None and found['model_flops'] > 0


def test_a_step_is_lowered_as_if_the_gpu_were_here():
  ask = lambda: fused.check_compute_capability('9.0')  # before packed documents are lowered
  sizes = dict(parameters=0, trained_parameters=0, model_flops=0, model_flops_masked=0)
  step = steps.Step(function=types.SimpleNamespace(lower=ask), arguments=(), **sizes)
  assert step.lower(make_mesh(MeshConfig())) and not ask()


def test_the_command_prints_and_writes_what_it_found(tmp_path, monkeypatch):
  monkeypatch.setattr(topology, 'devices', lambda target: jax.devices())
  target = tmp_path / 'found.json'
  result = CliRunner().invoke(
    main.main,
    [
      'precompile', '--gin_file=tests/tiny.gin', '--topology=h100:1x8', '--step=instruct',
      '--batch_size=8', f'--json={target}', f'--hlo={tmp_path}/step.hlo',
    ],
  )  # fmt: skip
  assert result.exit_code == 0, result.output
  assert 'static estimate' in result.output and 'measured' not in result.output
  found = json.loads(target.read_text())
  assert found['arm'] == 'retro_instruct' and found['topology'] == 'h100:1x8'
  assert 'ENTRY' in (tmp_path / 'step.hlo').read_text()

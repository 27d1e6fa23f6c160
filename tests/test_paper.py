"""The paper's experiments: the published numbers, and the abstract states of every arm."""

import functools
import math
from pathlib import Path
import re

import jax
from jax.sharding import AbstractMesh
import pytest

from instructretro_jax.examples.tasks import InstructionTuning
from instructretro_jax.model.sharding import MESH_AXES, MeshConfig, make_mesh
from instructretro_jax.pipeline import gin_adapter, manifest
from instructretro_jax.pipeline.experiment import Experiment
from instructretro_jax.precompile import topology
from instructretro_jax.train import loop
from instructretro_jax.train.mesh import check_batch, check_params
from instructretro_jax.train.state import abstract_params, abstract_state

ROOT = Path(__file__).parent.parent
PAPER = ROOT / 'experiments' / 'paper'
SIZES = ROOT / 'gin' / 'paper'
PHASES = ('pretrain', 'gpt_fit', 'retrofit', 'retrofit_frozen', 'instruct', 'evaluate')

# Wang et al. 2023, table of Retro-fitting: rate, batch, steps, then GPU-hours of GPT and Retro
PUBLISHED = {
  'retro_878m': (2e-5, 128, 195.2e3, '1,408', '1,920'),
  'retro_2.5b': (2e-5, 256, 97.6e3, '3,226', '4,096'),
  'retro_9.5b': (1e-5, 512, 48.8e3, '12,698', '17,325'),
  'retro_24b': (1e-5, 512, 48.8e3, '37,888', '52,152'),
  'retro_48b': (9e-6, 768, 32.5e3, '53,329', '69,995'),
}


def files_of(size, phase):
  return [str(PAPER / f'{phase}.gin'), str(SIZES / f'{size}.gin')]


@functools.cache
def stages_of(size, phase):
  experiment, _ = gin_adapter.configure(Experiment, files_of(size, phase), placeholder='a path')
  return {stage.name: stage for stage in experiment.stages}


def arms_of(size, phase):
  return {name: s for name, s in stages_of(size, phase).items() if isinstance(s, loop.Train)}


@functools.cache
def params_of(model, with_retrieval):
  """As trained, with layers scanned."""
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  return abstract_params(model, with_retrieval, mesh, scan_layers=True)


@functools.cache
def state_of(model, optimizer, num_steps, with_retrieval):
  return abstract_state(params_of(model, with_retrieval), optimizer, num_steps)[0]


def test_there_is_a_file_a_phase_and_a_file_a_size():
  assert {f.stem for f in PAPER.rglob('*.gin')} == set(PHASES)
  assert {f.stem for f in SIZES.glob('retro_*.gin')} == set(PUBLISHED)


@pytest.mark.parametrize('phase', PHASES)
@pytest.mark.parametrize('size', PUBLISHED)
def test_a_phase_builds_its_arms_and_their_states(size, phase):
  arms = arms_of(size, phase)
  assert arms
  for arm in arms.values():
    state = state_of(arm.model, arm.optimizer, arm.num_steps, arm.gate != 0 or arm.keep_retro)
    trained = sum(x.size for x in state.trainable.values())
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.shape)
    assert moments == 2 * trained > 0
    # the mesh of the size is that of its header, and all can be split over it
    shape = arm.mesh
    header = re.search(r'\((v5p:[\dx]+)\)', (SIZES / f'{size}.gin').read_text())
    assert shape.data * shape.fsdp * shape.tensor == topology.parse(header.group(1)).num_chips
    placed = AbstractMesh(shape.shape, MESH_AXES)
    check_batch(arm.batch_size, arm.num_microbatches, placed)
    check_params(arm.model, arm.with_retrieval, placed)


@pytest.mark.parametrize('size', PUBLISHED)
def test_fits_are_as_published(size):
  rate, batch_size, num_steps, gpt_hours, retro_hours = PUBLISHED[size]
  arms = {phase: list(arms_of(size, phase).values())[-1] for phase in PHASES[1:4]}
  assert [arm.gate for arm in arms.values()] == [0, 1, 1]
  assert arms['retrofit_frozen'].optimizer.lr_multipliers[-1] == ('', 0.0)
  for arm in arms.values():
    o = arm.optimizer
    assert (arm.batch_size, arm.task.seq_len) == (batch_size, 4096)
    assert arm.num_steps == pytest.approx(num_steps, rel=2e-3)
    assert arm.num_steps * batch_size == pytest.approx(25e6, rel=1e-4)
    assert (o.learning_rate, o.b1, o.b2, o.weight_decay, o.clip_norm) == (rate, 0.9, 0.95, 0.1, 1)
    at = o.schedule(arm.num_steps)
    warm, end = math.ceil(16_667 / batch_size), math.ceil(23.75e6 / batch_size)
    assert float(at(warm // 2)) < 0.6 * rate and float(at(warm + 1)) == pytest.approx(
      rate, rel=1e-3
    )
    assert float(at(end // 2)) == pytest.approx(0.55 * rate, rel=1e-2)
    assert float(at(end)) == float(at(arm.num_steps)) == pytest.approx(rate / 10, rel=1e-4)
  header = (SIZES / f'{size}.gin').read_text()
  hours = dict(re.findall(r'^#   (\w+) .*; ([\d,]+) GPU-hours$', header, re.M))
  assert hours == {'gpt_fit': gpt_hours, 'retrofit': retro_hours}


@pytest.mark.parametrize('size', PUBLISHED)
def test_instruction_tuning_is_as_published(size):
  arms = arms_of(size, 'instruct')
  tuned = [arm for arm in arms.values() if isinstance(arm.task, InstructionTuning)]
  assert [arm.name for arm in tuned] == ['gpt_instruct', 'retro_instruct']
  for arm in tuned:
    o = arm.optimizer
    assert (arm.gate, arm.batch_size, arm.num_steps, arm.task.seq_len) == (0, 128, 1000, 4096)
    assert (o.b1, o.b2, o.weight_decay) == (0.9, 0.98, 0.01)
    at = o.schedule(arm.num_steps)
    assert [float(at(n)) for n in (0, 1, 500, 999)] == [pytest.approx(5e-6)] * 4
    rates = dict(arm.task.rates)
    assert sum(rates.values()) == pytest.approx(1)
    assert sorted(rates.values()) == [0.01, 0.01, 0.02, 0.02, 0.02, 0.02, 0.033, 0.05, 0.817]
    assert (rates['oasst_noncode'], rates['dolly'], rates['flan_cot']) == (0.817, 0.05, 0.01)
    sets = stages_of(size, 'instruct')['questions'].sets
    assert [one.task for one in sets] == list(rates)


def test_evaluation_decodes_as_published():
  zero_shot = stages_of('retro_48b', 'evaluate')['questions_eval']
  assert (zero_shot.prompt_len + zero_shot.num_new, zero_shot.num_new) == (4096, 256)


def test_a_run_must_choose_its_paths():
  with pytest.raises(manifest.StageError, match="DOCUMENTS', 'EMBEDDER', 'VOCABULARY'"):
    gin_adapter.configure(Experiment, files_of('retro_48b', 'retrofit'))


@pytest.mark.parametrize('placeholder', [None, 'a path'])
@pytest.mark.parametrize('phase', PHASES)
def test_without_a_size_the_file_to_add_is_named_in_one_line(phase, placeholder):
  with pytest.raises(manifest.StageError) as raised:
    gin_adapter.configure(Experiment, files_of('', phase)[:1], placeholder=placeholder)
  message = str(raised.value)
  assert '\n' not in message and "'BATCH_SIZE', 'FIT_RATE'" in message
  named = re.search(r'add --gin_file=(\S+?),', message).group(1)
  assert (ROOT / named).is_file()
  assert ('DOCUMENTS' in message) == (placeholder is None)

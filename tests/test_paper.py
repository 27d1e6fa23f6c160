"""The paper's experiments: the published numbers, and the abstract states of every arm."""

import functools
import math
from pathlib import Path
import re

import jax
import pytest

from instructretro_jax.examples.tasks import InstructionTuning
from instructretro_jax.model.sharding import MeshConfig, make_mesh
from instructretro_jax.pipeline import gin_adapter, manifest
from instructretro_jax.pipeline.experiment import Experiment
from instructretro_jax.precompile import topology
from instructretro_jax.train import loop
from instructretro_jax.train.state import abstract_params, abstract_state

ROOT = Path(__file__).parent.parent
PAPER = ROOT / 'experiments' / 'paper'
FILES = sorted(PAPER.rglob('*.gin'))
PHASES = ('pretrain', 'gpt_fit', 'retrofit', 'retrofit_frozen', 'instruct', 'evaluate')

# Wang et al. 2023, table of Retro-fitting: rate, batch, steps, then GPU-hours of GPT and Retro
PUBLISHED = {
  'retro_878m': (2e-5, 128, 195.2e3, '1,408', '1,920'),
  'retro_2.5b': (2e-5, 256, 97.6e3, '3,226', '4,096'),
  'retro_9.5b': (1e-5, 512, 48.8e3, '12,698', '17,325'),
  'retro_24b': (1e-5, 512, 48.8e3, '37,888', '52,152'),
  'retro_48b': (9e-6, 768, 32.5e3, '53,329', '69,995'),
}


@functools.cache
def stages_of(path):
  experiment, _ = gin_adapter.configure(Experiment, [str(path)], placeholder='a path')
  return {stage.name: stage for stage in experiment.stages}


def arms_of(path):
  return {name: s for name, s in stages_of(path).items() if isinstance(s, loop.Train)}


@functools.cache
def params_of(model, with_retrieval):
  """As trained, with layers scanned."""
  mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  return abstract_params(model, with_retrieval, mesh, scan_layers=True)


@functools.cache
def state_of(model, optimizer, num_steps, with_retrieval):
  return abstract_state(params_of(model, with_retrieval), optimizer, num_steps)[0]


def test_every_size_has_every_phase():
  assert {(f.parent.name, f.stem) for f in FILES} == {(s, p) for s in PUBLISHED for p in PHASES}


@pytest.mark.parametrize('path', FILES, ids=lambda p: f'{p.parent.name}-{p.stem}')
def test_a_file_builds_its_arms_and_their_states(path):
  arms = arms_of(path)
  assert arms
  for arm in arms.values():
    state = state_of(arm.model, arm.optimizer, arm.num_steps, arm.gate != 0 or arm.keep_retro)
    trained = sum(x.size for x in state.trainable.values())
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.shape)
    assert moments == 2 * trained > 0
    # the mesh of the file is that of its header, and the batch can be split over it
    shape = arm.mesh
    header = re.search(r'\((v5p:[\dx]+)\)', path.read_text())
    assert shape.data * shape.fsdp * shape.tensor == topology.parse(header.group(1)).num_chips
    assert arm.batch_size % (shape.data * shape.fsdp) == 0


@pytest.mark.parametrize('size', PUBLISHED)
def test_fits_are_as_published(size):
  rate, batch_size, num_steps, gpt_hours, retro_hours = PUBLISHED[size]
  files = {phase: PAPER / size / f'{phase}.gin' for phase in PHASES}
  arms = {phase: list(arms_of(files[phase]).values())[-1] for phase in PHASES[1:4]}
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
  assert f'{gpt_hours} GPU-hours' in files['gpt_fit'].read_text()
  assert f'{retro_hours} GPU-hours' in files['retrofit'].read_text()


@pytest.mark.parametrize('size', PUBLISHED)
def test_instruction_tuning_is_as_published(size):
  arms = arms_of(PAPER / size / 'instruct.gin')
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
    sets = stages_of(PAPER / size / 'instruct.gin')['questions'].sets
    assert [one.task for one in sets] == list(rates)


def test_evaluation_decodes_as_published():
  zero_shot = stages_of(PAPER / 'retro_48b' / 'evaluate.gin')['questions_eval']
  assert (zero_shot.prompt_len + zero_shot.num_new, zero_shot.num_new) == (4096, 256)


def test_a_run_must_choose_its_paths():
  with pytest.raises(manifest.StageError, match="DOCUMENTS', 'EMBEDDER', 'VOCABULARY'"):
    gin_adapter.configure(Experiment, [str(PAPER / 'retro_48b' / 'retrofit.gin')])

"""Every experiment file is parsed and its models built; one is run whole, killed and resumed."""

import dataclasses
import json
from pathlib import Path
import re
import shutil

import jax
from jax.sharding import AbstractMesh
import pytest

from instructretro_jax.commands import sweeping
from instructretro_jax.evaluate import zero_shot
from instructretro_jax.examples import tasks
from instructretro_jax.model.sharding import MESH_AXES
from instructretro_jax.pipeline import gin_adapter, manifest
from instructretro_jax.pipeline.experiment import Experiment
from instructretro_jax.pipeline.experiment import run as run_experiment
from instructretro_jax.questions import questions
from instructretro_jax.text.documents import Problems
from instructretro_jax.train import loop, state
from tests.checkpoints import load_params

ROOT = Path(__file__).parent.parent
MODEL = ROOT / 'tests' / 'golden' / 'hf' / 'llama'
FILES = sorted((ROOT / 'experiments').rglob('*.gin'))
SWEEPS = [p for p in FILES if 'sweeps' in p.parts]
EXPERIMENTS = [p for p in FILES if p not in SWEEPS]
# tests/test_paper.py and tests/precompile/test_open_models.py have the others
WHOLE = [p for p in EXPERIMENTS if not {'paper', 'open_models'} & set(p.parts)]
ONE_DEVICE = AbstractMesh((1,) * len(MESH_AXES), MESH_AXES)


def configure(path, *bindings):
  return gin_adapter.configure(Experiment, [str(path)], bindings)[0]


@pytest.mark.parametrize('path', WHOLE, ids=lambda p: f'{p.parent.name}-{p.stem}')
def test_every_experiment_is_parsed_and_built(path):
  model = [f"MODEL = '{MODEL}'"] if 'own_model' in path.parts else []  # its size is read there
  experiment, _ = gin_adapter.configure(Experiment, [str(path)], model, placeholder='a path')
  arms = [s for s in experiment.stages if isinstance(s, loop.Train)]
  assert arms or any(isinstance(s, zero_shot.ZeroShot) for s in experiment.stages)
  for member in experiment.stages:
    # a sentence on a line; a dataclass without a docstring says `Name(fields)`
    assert re.fullmatch(r'[A-Z][a-z]+,? .{10,95}\.', member.summary()), member.summary()
  for arm in arms:
    params = state.abstract_params(arm.model, arm.gate != 0, ONE_DEVICE)  # traced once for a model
    assert sum(x.size for x in jax.tree.leaves(params)) > 0


@pytest.mark.parametrize('path', SWEEPS, ids=lambda p: p.stem)
def test_every_sweep_is_parsed_and_shares_what_its_axes_leave_alone(path):
  prepared = sweeping.prepare([str(path)], (), Path('runs/sweep'))
  assert len(prepared.jobs) > 1 and {'corpus', 'index', 'neighbours'} <= set(prepared.shared.only)
  arms = {s.name for s in prepared.experiments[0].stages if isinstance(s, loop.Train)}
  assert arms and not arms & set(prepared.shared.only)


@pytest.mark.parametrize('path', FILES, ids=lambda p: f'{p.parent.name}-{p.stem}')
def test_headers_name_the_file_itself(path):
  command = path.read_text().splitlines()[0]
  name = 'sweep' if path in SWEEPS else 'run'
  assert command.startswith(f'# instructretro {name} ')
  named = re.findall(r'--gin_file=(\S+)', command)
  assert named[0] == str(path.relative_to(ROOT))
  assert all((ROOT / other).is_file() for other in named[1:])


def test_arms_differ_in_what_they_should_and_see_the_same_tokens():
  arms = {s.name: s for s in configure(ROOT / 'experiments/quickstart/run.gin').stages}
  fits = [arms[name] for name in ('gpt_fit', 'retro_fit', 'retro_frozen')]
  assert len({(a.data_seed, a.batch_size, a.num_steps, a.task.seq_len) for a in fits}) == 1
  assert [a.gate for a in fits] == [0.0, 1.0, 1.0]
  assert arms['retro_frozen'].optimizer.lr_multipliers[-1] == ('', 0.0)
  assert arms['retro_instruct'].keep_retro and arms['retro_instruct'].gate == 0


@pytest.mark.parametrize('name, gate', [('on', 1.0), ('random', 'random')])
def test_an_ablation_of_the_gate_changes_the_gate_alone(name, gate):
  of = lambda path: {s.name: s for s in configure(ROOT / 'experiments' / path).stages}
  plain, ablated = of('quickstart/run.gin'), of(f'ablations/instruct_gate_{name}.gin')
  assert [n for n in plain if plain[n] != ablated[n]] == ['retro_instruct']
  arm = ablated['retro_instruct']
  assert arm.gate == gate and arm.optimizer.lr_multipliers == ()  # the encoder is trained too
  assert dataclasses.replace(arm, gate=0.0) == plain['retro_instruct']


@pytest.mark.packages
def test_the_packaged_blend_has_a_rate_for_each_of_its_sets():
  path = [str(ROOT / 'gin/tasks/packaged_blend.gin')]
  stage, _ = gin_adapter.configure(questions.Questions, path)
  task, _ = gin_adapter.configure(tasks.InstructionTuning, path, ['InstructionTuning.seq_len = 64'])
  assert [next(one.read(Problems())).task for one in stage.sets] == [name for name, _ in task.rates]
  assert sum(rate for _, rate in task.rates) == pytest.approx(1)


def test_mistakes_in_gin_are_errors_in_words():
  path = ROOT / 'experiments/quickstart/run.gin'
  with pytest.raises(manifest.StageError, match="used nowhere.*'FIT_STEP'"):
    configure(path, 'FIT_STEP = 3')
  with pytest.raises(manifest.StageError, match='no_such'):
    configure(path, 'chunks.Chunks.no_such = 3')
  with pytest.raises(manifest.StageError, match='DOCUMENTS'):
    configure(ROOT / 'experiments/quickstart/own_text.gin')


class Killed(Exception):
  pass


def hashes(root):
  counts = {
    p.parent.name: json.loads(p.read_text())['counts'] for p in root.glob('*/manifest.json')
  }
  return {
    name: found['params_sha256'] for name, found in counts.items() if 'params_sha256' in found
  }


@pytest.mark.longest
@pytest.mark.packages
def test_own_text_runs_whole_and_a_killed_run_ends_the_same(tmp_path, tiny_documents, monkeypatch):
  experiment = configure(ROOT / 'tests' / 'tiny.gin', f"DOCUMENTS = '{tiny_documents}/*.txt'")
  run_experiment(experiment, tmp_path / 'whole')
  assert len(hashes(tmp_path / 'whole')) == 6
  # an arm of each kind is trained again, and dies once, at its third step, past a checkpoint
  shutil.copytree(tmp_path / 'whole', tmp_path / 'killed')
  killed = {'gpt', 'retro_frozen', 'retro_instruct'}
  for name in killed:
    shutil.rmtree(tmp_path / 'killed' / name)
  add, alive = loop.TrainLog.add, set(killed)

  def add_or_die(log, step, metrics):
    if step == 3 and log.name in alive:
      alive.remove(log.name)
      raise Killed
    add(log, step, metrics)

  monkeypatch.setattr(loop.TrainLog, 'add', add_or_die)
  for _ in killed:
    with pytest.raises(Killed):
      run_experiment(experiment, tmp_path / 'killed', log=lambda _: None)
  said = []
  run_experiment(experiment, tmp_path / 'killed', log=said.append)
  # what was made of the arms, which knows them by their bytes, need not be made again
  assert {line.partition(':')[0] for line in said if 'done' in line} == {'retro_instruct'}
  assert hashes(tmp_path / 'killed') == hashes(tmp_path / 'whole')
  said.clear()
  run_experiment(experiment, tmp_path / 'whole', log=said.append)
  assert all(line.endswith('up to date') for line in said)
  frozen, _ = load_params(tmp_path / 'whole' / 'retro_frozen')[1:]
  gpt, _ = load_params(tmp_path / 'whole' / 'gpt')[1:]
  same = jax.tree.map(lambda a, b: bool((a == b).all()), frozen['embedding'], gpt['embedding'])
  assert all(jax.tree.leaves(same))

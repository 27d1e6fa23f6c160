"""Stage folders: idempotent, refused on mismatch, resumed."""

import dataclasses

import pytest

from instructretro_jax.pipeline import manifest, stage
from instructretro_jax.pipeline.experiment import Experiment
from instructretro_jax.pipeline.experiment import run as run_experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Write(stage.Stage):
  """Writes its text; counts how often it ran in a log, which no checksum covers."""

  text: str
  after: tuple[str, ...] = ()

  def reads(self):
    return self.after

  def build(self, root, folder):
    manifest.write_text(folder / 'text', self.text)
    log = folder / 'logs' / 'runs'
    runs = log.read_text() if log.exists() else ''
    manifest.write_text(log, runs + 'x')
    return {'length': len(self.text)}


def runs(root, name):
  return len((root / name / 'logs' / 'runs').read_text())


def test_a_finished_stage_runs_once(tmp_path):
  first = stage.run(Write(name='a', text='x'), tmp_path)
  assert stage.run(Write(name='a', text='x'), tmp_path) == first
  assert runs(tmp_path, 'a') == 1
  assert set(first.files) == {'text'}


def test_another_plan_is_refused_with_a_diff(tmp_path):
  stage.run(Write(name='a', text='old'), tmp_path)
  with pytest.raises(manifest.StageError, match=r'(?s)-.*"old".*\+.*"new".*--rebuild=a'):
    stage.run(Write(name='a', text='new'), tmp_path)
  assert (tmp_path / 'a' / 'text').read_text() == 'old'


def test_an_unfinished_stage_goes_on_only_with_its_own_plan(tmp_path):
  asked = stage.plan(Write(name='a', text='x'), tmp_path)
  manifest.begin(tmp_path / 'a', asked)
  with pytest.raises(manifest.StageError, match='another configuration'):
    stage.run(Write(name='a', text='y'), tmp_path)
  stage.run(Write(name='a', text='x'), tmp_path)
  assert not (tmp_path / 'a' / 'plan.json').exists()


def test_changed_input_is_noticed_and_rebuild_follows(tmp_path):
  experiment = Experiment((Write(name='a', text='x'), Write(name='b', text='y', after=('a',))))
  said = []
  run_experiment(experiment, tmp_path, log=said.append)
  run_experiment(experiment, tmp_path, log=said.append)
  assert (
    said[0] == 'a: Writes its text; counts how often it ran in a log, which no checksum covers.'
  )
  assert said[1].startswith('a: done in')
  assert said[-2:] == ['a: up to date', 'b: up to date']
  changed = dataclasses.replace(experiment.stages[0], text='z')
  experiment = Experiment((changed, experiment.stages[1]))
  run_experiment(experiment, tmp_path, rebuild=['a'], log=said.append)
  assert runs(tmp_path, 'b') == 1  # made anew, its old log deleted with it
  assert (tmp_path / 'a' / 'text').read_text() == 'z'


def test_a_damaged_file_is_noticed(tmp_path):
  stage.run(Write(name='a', text='whole'), tmp_path)
  (tmp_path / 'a' / 'text').write_text('cut')
  with pytest.raises(manifest.StageError, match='cut short.*--rebuild=a'):
    stage.run(Write(name='a', text='whole'), tmp_path)


def test_order_and_names_of_stages_are_checked():
  with pytest.raises(ValueError, match="'b' reads \\['a'\\]"):
    Experiment((Write(name='b', text='', after=('a',)), Write(name='a', text='')))
  with pytest.raises(ValueError, match="two stages are named 'a'"):
    Experiment((Write(name='a', text=''), Write(name='a', text='')))
  experiment = Experiment((Write(name='a', text=''), Write(name='b', text='')))
  assert [s.name for s in experiment.select(start='b')] == ['b']
  with pytest.raises(manifest.StageError, match="no stage is named 'c'"):
    experiment.select(only=['c'])


def test_stages_are_selected_from_one_to_another():
  experiment = Experiment(tuple(Write(name=name, text='') for name in 'abcd'))
  names = lambda **chosen: ''.join(member.name for member in experiment.select(**chosen))
  assert names() == 'abcd'
  assert names(stop='b') == 'ab'
  assert names(start='b', stop='c') == 'bc'
  assert names(start='d', stop='d') == 'd'
  assert names(only=['d', 'a', 'b'], stop='c') == 'ab'  # in the order of the experiment


def test_selecting_nothing_or_an_unknown_bound_is_an_error():
  experiment = Experiment(tuple(Write(name=name, text='') for name in 'abc'))
  with pytest.raises(manifest.StageError, match='no stage is selected from c to a'):
    experiment.select(start='c', stop='a')
  with pytest.raises(manifest.StageError, match=r"no stage is selected .* by \['c'\]"):
    experiment.select(only=['c'], stop='b')
  with pytest.raises(manifest.StageError, match="no stage is named 'd'"):
    experiment.select(stop='d')


def test_a_run_stops_after_the_last_stage_chosen(tmp_path):
  experiment = Experiment(tuple(Write(name=name, text='') for name in 'abc'))
  run_experiment(experiment, tmp_path, stop='b', log=lambda _: None)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['a', 'b']

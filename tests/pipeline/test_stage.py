"""Stage folders: idempotent, refused on mismatch, resumed."""

import dataclasses
import json
import subprocess
from typing import ClassVar

import numpy as np
import pytest

from instructretro_jax.pipeline import manifest, root_lock, stage
from instructretro_jax.pipeline.array_store import write_shard
from instructretro_jax.pipeline.experiment import Experiment, outcome
from instructretro_jax.pipeline.experiment import run as run_experiment
from instructretro_jax.pipeline.hosts import Hosts
from tests.pipeline.writing import Write


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
  manifest.write_text(tmp_path / 'a' / 'half', 'of its work')
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


def test_a_refused_attempt_that_left_nothing_can_be_changed(tmp_path):
  manifest.begin(tmp_path / 'a', stage.plan(Write(name='a', text='x'), tmp_path))
  assert stage.run(Write(name='a', text='y'), tmp_path).counts == {'length': 1}


@pytest.mark.parametrize('content', ['', '{"plan": ', '[]', '{"plan": {"stage": 1}}'])
@pytest.mark.parametrize('name', ['manifest.json', 'plan.json'])
def test_a_damaged_record_is_named(tmp_path, name, content):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a' / name).write_text(content)
  with pytest.raises(manifest.StageError, match=f'{name} is damaged.*--rebuild=a'):
    stage.run(Write(name='a', text='x'), tmp_path)


def test_what_a_kill_has_left_is_no_part_of_a_stage(tmp_path):
  (tmp_path / 'a' / 'sub').mkdir(parents=True)
  (tmp_path / 'a' / 'text.1234abcd.partial').write_text('half')
  (tmp_path / 'a' / 'sub' / 'x.partial').mkdir()
  assert set(stage.run(Write(name='a', text='x'), tmp_path).files) == {'text'}


def three(text='x'):
  return Experiment(
    (
      Write(name='a', text=text),
      Write(name='b', text='y', after=('a',)),
      Write(name='c', text='z', after=('b',)),
    )
  )


def words(experiment, root, **chosen):
  return [status.words for status in outcome(experiment, root, **chosen)]


def test_what_a_run_would_do_is_told_downstream_too(tmp_path):
  assert words(three(), tmp_path) == ['would run'] * 3
  run_experiment(three(), tmp_path, log=lambda _: None)
  assert words(three(), tmp_path) == ['up to date'] * 3
  assert words(three(), tmp_path, rebuild=['b']) == [
    'up to date',
    'would run anew',
    'would run anew',
  ]
  first, *others = words(three('other'), tmp_path)
  assert first.endswith('was made with another configuration:')
  assert others == ['not reached: a is refused'] * 2
  stage.discard(three().stages[0], tmp_path)
  assert words(three(), tmp_path) == [
    'would run',
    'up to date if a gives what it gave before',
    'up to date if b gives what it gave before',
  ]
  with pytest.raises(manifest.StageError, match="no stage is named 'd'"):
    words(three(), tmp_path, rebuild=['d'])


def test_a_refused_run_leaves_the_recorded_configuration(tmp_path):
  run_experiment(three(), tmp_path, operative='x', log=lambda _: None)
  record = tmp_path / 'operative_config.gin'
  with pytest.raises(manifest.StageError, match='another configuration'):
    run_experiment(three('other'), tmp_path, operative='other', log=lambda _: None)
  assert record.read_text() == 'x'
  # what stands upstream of the chosen stages is compared as well
  with pytest.raises(manifest.StageError, match='(?s)/a was made with another.*"other"'):
    run_experiment(three('other'), tmp_path, start='b', operative='other', log=lambda _: None)
  stage.discard(three().stages[0], tmp_path)
  said = []
  run_experiment(three('other'), tmp_path, only=['a'], operative='other', log=said.append)
  assert record.read_text() == 'x'  # of which the others were made
  assert said[-1] == 'operative_config.gin stays as it is; made with another configuration: b'


def test_a_stage_that_reads_what_is_not_there_is_refused_before_anything_is_written(tmp_path):
  with pytest.raises(manifest.StageError, match='b reads .*a, which holds no finished stage'):
    run_experiment(three(), tmp_path / 'r', start='b', log=lambda _: None)
  assert not (tmp_path / 'r').exists()


def test_a_finished_root_may_be_read_only(tmp_path, monkeypatch):
  run_experiment(three(), tmp_path, operative='x', log=lambda _: None)
  refuse = lambda *args, **kwargs: (_ for _ in ()).throw(OSError(30, 'Read-only file system'))
  monkeypatch.setattr(manifest, 'write_text', refuse)
  monkeypatch.setattr(root_lock, 'held', refuse)
  said = []
  run_experiment(three(), tmp_path, operative='x', log=said.append)
  assert said == ['a: up to date', 'b: up to date', 'c: up to date']


class _Unlisted(Write):
  unlisted = frozenset({'logs', 'checkpoints'})


def test_checkpoints_that_are_gone_are_noticed(tmp_path):
  member = _Unlisted(name='a', text='x')
  (tmp_path / 'a' / 'checkpoints' / '3').mkdir(parents=True)
  stage.run(member, tmp_path)
  (tmp_path / 'a' / 'checkpoints' / '3').rmdir()
  with pytest.raises(manifest.StageError, match='checkpoints is gone: rebuild'):
    stage.run(member, tmp_path)


class _Fills(Write):
  def build(self, root, folder):
    write_shard(folder, 'x', 0, np.random.default_rng(0).normal(size=(4000, 64)))
    return {}


def test_a_full_disk_is_named_and_the_stage_goes_on_once_there_is_room(tmp_path):
  small = tmp_path / 'small'
  small.mkdir()
  mounted = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=400k', 'tmpfs', small], capture_output=True
  )
  if mounted.returncode:
    pytest.skip('no file system can be mounted here')
  try:
    with pytest.raises(manifest.StageError, match='the disk of .*/a is full: make room'):
      stage.run(_Fills(name='a', text=''), small)
    subprocess.run(['mount', '-o', 'remount,size=40m', small], check=True)
    assert stage.run(_Fills(name='a', text=''), small).files
    assert not list((small / 'a').rglob('*.partial'))
  finally:
    subprocess.run(['umount', small], check=True)


class Main(Hosts):
  """Process 0 of two; `sent` is what it hands to the other."""

  sent: ClassVar[list[str]] = []

  def on_main(self, function):
    value = function()
    self.sent.append(json.dumps(value))
    return value


class Other(Hosts):
  """The other, to which process 0 has sent that already."""

  def on_main(self, function):
    return json.loads(Main.sent.pop(0))


def test_a_process_that_sees_no_file_yet_learns_all_from_process_0(tmp_path):
  """NFS shows a file that another host has written up to a minute later."""
  Main.sent.clear()
  stage.run(Write(name='a', text='x'), tmp_path / 'seen', Main(0, 2))
  reader = Write(name='b', text='y', after=('a',))
  begun = len(Main.sent)
  made = [stage.run(reader, tmp_path / 'seen', Main(0, 2)) for _ in range(2)]
  del Main.sent[:begun]
  assert [stage.run(reader, tmp_path / 'unseen', Other(1, 2)) for _ in range(2)] == made
  assert not Main.sent and not (tmp_path / 'unseen').exists()

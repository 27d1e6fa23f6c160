"""The grid of a sweep, and which stages its jobs share."""

import dataclasses
import json
import math
from pathlib import Path
import re

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from instructretro_jax.pipeline import manifest, sharing, stage, sweep
from instructretro_jax.pipeline.experiment import Experiment, outcome
from instructretro_jax.pipeline.experiment import run as run_experiment
from instructretro_jax.pipeline.status import State
from tests.pipeline.writing import Write

NAMES = st.sampled_from(['SEED', 'a.B.rate', 'x/a.B.rate', 'FIT_RATE', 'steps', 'b.C.steps'])
VALUES = st.one_of(
  st.integers(), st.booleans(), st.none(), st.text(max_size=40),
  st.floats(allow_nan=False, allow_infinity=False), st.tuples(st.text(max_size=3), st.integers()),
)  # fmt: skip
AXES = st.lists(
  st.tuples(NAMES, st.lists(VALUES, min_size=1, max_size=4, unique_by=repr).map(tuple)),
  min_size=1,
  max_size=3,
  unique_by=lambda axis: axis[0],
).map(tuple)


@given(AXES)
@settings(max_examples=40, deadline=None)
def test_a_job_for_each_combination_with_a_folder_of_its_own(axes):
  made = sweep.Sweep(('a.gin',), axes, ('COMMON = 1',))
  jobs = made.jobs(Path('runs'))
  assert len(jobs) == math.prod(len(values) for _, values in axes)
  assert len({job.name.casefold() for job in jobs}) == len(jobs)
  assert len({job.bindings for job in jobs}) == len(jobs)
  assert jobs == sweep.Sweep(('a.gin',), axes, ('COMMON = 1',)).jobs(Path('runs'))
  for job in jobs:
    assert re.fullmatch(r'[A-Za-z][A-Za-z0-9_.+-]*', job.name) and job.root == Path(
      'runs', job.name
    )
    assert job.bindings[0] == 'COMMON = 1' and len(job.bindings) == 1 + len(axes)


def test_names_and_commands_are_readable():
  axes = (('SEED', (0, 1)), ('fit/retro/optimizer.AdamW.lr_schedule', ('cosine', 'wsd')))
  jobs = sweep.Sweep(('a.gin', 'b.gin'), axes, ('STEPS = 3',)).jobs(Path('runs/s'))
  assert [job.name for job in jobs] == [
    'SEED-0_lr_schedule-cosine', 'SEED-0_lr_schedule-wsd',
    'SEED-1_lr_schedule-cosine', 'SEED-1_lr_schedule-wsd',
  ]  # fmt: skip
  job = dataclasses.replace(jobs[1], only=('a', 'b'), links=(Path('old/c'), Path('old/d')))
  assert job.command() == (
    'instructretro', 'run', '--gin_file=a.gin', '--gin_file=b.gin',
    '--root=runs/s/SEED-0_lr_schedule-wsd', '--gin.STEPS=3', '--gin.SEED=0',
    "--gin.fit/retro/optimizer.AdamW.lr_schedule='wsd'", '--only=a,b', '--link=old/c',
    '--link=old/d',
  )  # fmt: skip


def test_values_that_look_alike_are_numbered():
  made = sweep.Sweep(('a.gin',), (('x', ('A', 'a', '?', '_')), ('y', ('1_y-1', '1'))))
  names = [job.name for job in made.jobs(Path('runs'))]
  assert names[0] == 'x-0-A_y-1-y-1' and names[3] == 'x-1-a_y-1'
  assert len({name.casefold() for name in names}) == 8


@pytest.mark.parametrize(
  'axes, bindings, words',
  [
    ((), (), 'at least one'),
    (('SEED', (0, 1)), (), 'no pair'),
    ((('SEED', ()),), (), 'one or more'),
    ((('SEED', (0, 0)),), (), 'each once'),
    ((('SEED', (0,)), ('SEED', (1,))), (), 'elsewhere'),
    ((('SEED', (0,)),), ('SEED = 1',), 'elsewhere'),
    ((('SEED', (0,)),), ('SEED=1',), 'NAME = VALUE'),
    ((('SE ED', (0,)),), (), 'no name'),
    ((('SEED', (object,)),), (), 'no number'),
  ],
)
def test_what_is_no_grid_is_refused(axes, bindings, words):
  with pytest.raises(ValueError, match=words):
    sweep.Sweep(('a.gin',), axes, bindings)


def chain(a='a', b='b', c='c'):
  """c reads b, d reads a alone."""
  return Experiment(
    (
      Write(name='a', text=a),
      Write(name='b', text=b, after=('a',)),
      Write(name='c', text=c, after=('b',)),
      Write(name='d', text='d', after=('a',)),
    )
  )


def test_shared_is_what_is_alike_and_reads_only_that():
  assert sharing.shared_stages([chain(), chain(c='x')]) == ('a', 'b', 'd')
  assert sharing.shared_stages([chain(), chain(b='x')]) == ('a', 'd')
  assert sharing.shared_stages([chain(), chain(a='x')]) == ()
  assert sharing.shared_stages([chain(), chain(c='x'), chain(b='x')]) == ('a', 'd')
  assert sharing.shared_stages([chain(), Experiment(chain().stages[:1])]) == ('a',)
  assert sharing.shared_stages([chain()]) == ()
  with pytest.raises(manifest.StageError, match='one and three are one experiment'):
    sharing.refuse_equal(['one', 'two', 'three'], [chain(), chain(b='x'), chain()])


def test_a_linked_stage_is_read_and_never_written_to(tmp_path):
  quiet = lambda line: None
  run_experiment(chain(), tmp_path / 'shared', only=['a', 'b'], log=quiet)
  shared = [tmp_path / 'shared' / name for name in 'ab']
  (tmp_path / 'elsewhere' / 'job').mkdir(parents=True)
  (tmp_path / 'job').symlink_to('elsewhere/job')  # a root may be a link itself
  sharing.link(shared, tmp_path / 'job')
  sharing.link(shared, tmp_path / 'job')  # again does nothing
  assert str((tmp_path / 'job' / 'a').readlink()) == '../../shared/a'
  with pytest.raises(manifest.StageError, match='shared/c holds no finished stage'):
    sharing.link([tmp_path / 'shared' / 'c'], tmp_path / 'job')
  run_experiment(chain(), tmp_path / 'job', log=quiet)
  assert all(one.state is State.DONE for one in outcome(chain(), tmp_path / 'job'))
  assert (tmp_path / 'shared' / 'a' / 'logs' / 'runs').read_text() == 'x'  # made once
  before = json.loads((tmp_path / 'shared' / 'a' / 'manifest.json').read_text())
  for refused in ({'rebuild': ['a']}, {'rebuild': ['b'], 'only': ['d']}):
    with pytest.raises(manifest.StageError, match=r'^\S+/job/[ab] is a link to [^\n]+$'):
      run_experiment(chain(), tmp_path / 'job', log=quiet, **refused)
  assert outcome(chain(), tmp_path / 'job', rebuild=['a'])[0].state is State.REFUSED
  with pytest.raises(manifest.StageError, match='is a link'):
    stage.discard(chain().stages[0], tmp_path / 'job')
  run_experiment(chain(), tmp_path / 'job', rebuild=['c'], log=quiet)
  assert json.loads((tmp_path / 'shared' / 'a' / 'manifest.json').read_text()) == before
  # where what is shared was not finished, nothing is made through the link either
  (tmp_path / 'shared' / 'b' / 'manifest.json').unlink()
  with pytest.raises(manifest.StageError, match='job/b is a link'):
    run_experiment(chain(), tmp_path / 'job', log=quiet)
  with pytest.raises(manifest.StageError, match='job/b is a link'):
    stage.run(chain().stages[1], tmp_path / 'job')

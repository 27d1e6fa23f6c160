"""The command `sweep`: stages that need no training, and once a small experiment, interrupted."""

import os
from pathlib import Path
import shlex
import signal
import subprocess
import sys
import time

from click.testing import CliRunner
import pytest

from instructretro_jax import main
from instructretro_jax.commands import sweeping
from instructretro_jax.pipeline import manifest

ROOT = Path(__file__).parents[2]
SWEEP = """from __gin__ import dynamic_registration
from instructretro_jax.pipeline import sweep
sweep.Sweep.gin_files = ('{experiment}',)
sweep.Sweep.axes = {axes}
"""
CUBE = (('LEFT', ('a', 'b')), ('RIGHT', ('x', 'y')), ('SEED', (0, 1)))


def arguments(tmp_path, axes, *more, experiment='tests/commands/sweep.gin'):
  path = tmp_path / 'grid.gin'
  path.write_text(SWEEP.format(experiment=experiment, axes=axes))
  return ['sweep', f'--gin_file={path}', f'--root={tmp_path}/sweep', *more]


def sweep(*given):
  return CliRunner().invoke(main.main, arguments(*given))


def num_runs(folder):
  return len((folder / 'logs' / 'runs').read_text())


def test_a_job_that_fails_leaves_the_others_and_is_run_again(tmp_path):
  root = tmp_path / 'sweep'
  root.mkdir()
  (root / 'fails_y').touch()
  given = (tmp_path, (('RIGHT', ('x', 'y')),), '--processes=2', "--gin.LEFT='l'")
  result = sweep(*given)
  assert result.exit_code == 1
  assert 'RIGHT-y: failed: error: y fails' in result.stderr.splitlines()
  assert 'RIGHT-x: done' in result.stderr.splitlines()
  assert 'RIGHT-x: running: right' in result.stderr.splitlines()
  assert (root / 'RIGHT-x' / 'right' / 'text').read_text() == 'x'
  assert (root / 'RIGHT-x' / 'left' / 'text').read_text() == 'l'
  (root / 'fails_y').unlink()
  result = sweep(*given)
  assert result.exit_code == 0, result.output
  assert 'RIGHT-x: done: up to date' in result.stderr.splitlines()
  assert 'shared' not in result.stderr
  assert 'not compared: ' in result.stdout and 'perplexity holds no finished stage' in result.stdout
  for name in ('base', 'left'):
    assert num_runs(root / 'shared' / name) == 1
    assert (root / 'RIGHT-y' / name).is_symlink()
  verified = CliRunner().invoke(main.main, ['verify', str(root / 'RIGHT-y')])
  assert verified.exit_code == 0, verified.output


def test_a_sweep_of_three_axes_is_eight_jobs_after_what_they_share(tmp_path):
  path = tmp_path / 'grid.gin'
  path.write_text(SWEEP.format(experiment='tests/commands/sweep.gin', axes=CUBE))
  prepared = sweeping.prepare([str(path)], (), Path('runs/cube'))
  files = ('instructretro', 'run', '--gin_file=tests/commands/sweep.gin')
  links = ('--link=runs/cube/shared/base',)
  assert prepared.shared.command() == (
    *files, '--root=runs/cube/shared', "--gin.LEFT='a'", "--gin.RIGHT='x'", '--gin.SEED=0',
    '--only=base',
  )  # fmt: skip
  assert [job.command() for job in prepared.jobs] == [
    (
      *files, f'--root=runs/cube/LEFT-{left}_RIGHT-{right}_SEED-{seed}', f"--gin.LEFT='{left}'",
      f"--gin.RIGHT='{right}'", f'--gin.SEED={seed}', *links,
    )
    for left in 'ab' for right in 'xy' for seed in (0, 1)
  ]  # fmt: skip


def test_commands_of_a_dry_run_do_by_hand_what_the_sweep_does(tmp_path):
  axes = (('RIGHT', ('x', 'y')),)
  result = sweep(tmp_path, axes, '--dry_run')
  lines = [shlex.split(line)[1:] for line in result.stdout.splitlines()]
  shared, *jobs = lines
  assert len(jobs) == 2 and '--only=base,left' in shared
  waiting = CliRunner().invoke(main.main, jobs[0])
  assert waiting.exit_code == 2 and 'does not exist' in waiting.output
  for line in (shared, *jobs):
    assert CliRunner().invoke(main.main, line).exit_code == 0
  assert num_runs(tmp_path / 'sweep' / 'shared' / 'base') == 1
  result = sweep(tmp_path, axes)
  assert result.exit_code == 0 and result.stderr.count('done: up to date') == 2
  told = CliRunner().invoke(main.main, [*jobs[0], '--dry_run', f'--root={tmp_path}/other'])
  assert f'left: would be linked to {tmp_path}/sweep/shared/left' in told.stdout.splitlines()
  assert 'right: would run' in told.stdout.splitlines() and not (tmp_path / 'other').exists()
  strange = [*jobs[0], f'--link={tmp_path}']
  with pytest.raises(manifest.StageError, match='no stage is named'):
    raise CliRunner().invoke(main.main, strange).exception


def test_a_machine_that_is_taken_away_ends_the_sweep(tmp_path):
  (tmp_path / 'sweep').mkdir()
  (tmp_path / 'sweep' / 'preempted_x').touch()
  result = sweep(tmp_path, (('RIGHT', ('x', 'y')),))
  assert result.exit_code == 75
  assert not (tmp_path / 'sweep' / 'RIGHT-y' / 'right').exists()


@pytest.mark.parametrize(
  'axes, more, words',
  [
    ((('LEFT', ('x', 'y')),), ['--gin.LEFT=1'], 'LEFT is an axis'),
    ((('NO_SUCH', (1, 2)),), [], "used nowhere.*'NO_SUCH'"),
  ],
)
def test_a_grid_that_is_wrong_starts_nothing(tmp_path, axes, more, words):
  result = sweep(tmp_path, axes, *more)
  with pytest.raises(manifest.StageError, match=words):
    raise result.exception
  assert not (tmp_path / 'sweep').exists()


def kill_with_children(process):
  """As a machine dies: a sweep and its jobs, each of which is a session of its own."""
  process.send_signal(signal.SIGSTOP)  # it starts no other meanwhile
  threads = Path(f'/proc/{process.pid}/task').glob('*/children')
  for number in (process.pid, *(int(n) for path in threads for n in path.read_text().split())):
    os.kill(number, signal.SIGKILL)
  process.communicate()


@pytest.mark.slow(minutes=7)
def test_a_sweep_of_eight_that_is_killed_and_interrupted_builds_one_corpus(
  tmp_path, tiny_documents
):
  axes = (
    ('FIT_RATE', (1e-3, 2e-3)), ('fit/retro/loop.Train.gate', (1.0, 'random')), ('SEED', (0, 1))
  )  # fmt: skip
  more = ['--processes=2', f"--gin.DOCUMENTS='{tiny_documents}/*.txt'"]
  given = arguments(tmp_path, axes, *more, experiment='tests/pipeline/hosts.gin')
  start = lambda: subprocess.Popen(
    [sys.executable, '-m', 'instructretro_jax', *given], text=True,
    cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    env={**os.environ, 'JAX_NUM_CPU_DEVICES': '2'},
  )  # fmt: skip
  root = tmp_path / 'sweep'
  finished = lambda stage: list(root.glob(f'FIT_RATE*/{stage}/manifest.json'))

  def start_until(stage, count):
    process = start()
    while process.poll() is None and len(finished(stage)) < count:
      time.sleep(0.05)
    return process

  kill_with_children(start_until('gpt', 1))
  corpus = manifest.read_manifest(root / 'shared' / 'corpus')
  made = (root / 'shared' / 'corpus' / 'manifest.json').stat().st_mtime_ns
  process = start_until('perplexity', 3)
  process.send_signal(signal.SIGINT)
  _, said = process.communicate(timeout=120)
  assert process.returncode == 128 + signal.SIGINT, said
  before = {path: path.stat().st_mtime_ns for path in finished('perplexity')}
  assert 3 <= len(before) < 8
  process = start()
  out, said = process.communicate()
  assert process.returncode == 0, said
  assert said.count('done: up to date') == len(before)
  jobs = sorted(root.glob('FIT_RATE*'))
  assert [job.name for job in jobs] == [
    f'FIT_RATE-{rate}_gate-{gate}_SEED-{seed}'
    for rate in ('0.001', '0.002') for gate in ('1.0', 'random') for seed in (0, 1)
  ]  # fmt: skip
  for job in jobs:
    assert manifest.is_finished(job / 'perplexity')
    assert (job / 'corpus').is_symlink() and (job / 'neighbours').is_symlink()
    assert not (job / 'gpt').is_symlink()
  assert all(path.stat().st_mtime_ns == when for path, when in before.items())
  assert manifest.read_manifest(root / 'shared' / 'corpus') == corpus
  assert (root / 'shared' / 'corpus' / 'manifest.json').stat().st_mtime_ns == made
  # a group for each rate and gate, of two seeds
  assert out.count('Perplexity by kind of token: mean of 2 runs') == 4

"""Several processes as one run: stages by process 0, and training that many do as one would."""

import json
import os
from pathlib import Path
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from instructretro_jax.pipeline import hosts, manifest
from instructretro_jax.train.checkpoint import Checkpoint
from tests.checkpoints import load_params

ROOT = Path(__file__).parents[2]
ARMS = ('gpt', 'retro_fit')


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def start(arguments: list[str], devices: int) -> subprocess.Popen:
  environment = {**os.environ, 'JAX_NUM_CPU_DEVICES': str(devices)}
  return subprocess.Popen(
    [sys.executable, *arguments], cwd=ROOT, env=environment, text=True,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
  )  # fmt: skip


def finish(processes: list[subprocess.Popen]) -> list[str]:
  """What they printed. All of them must end well."""
  try:
    ended = [process.communicate(timeout=1800) for process in processes]
  finally:
    for process in processes:
      process.kill()  # one that waits for another would wait long
  assert all(p.returncode == 0 for p in processes), [stderr[-3000:] for _, stderr in ended]
  return [stdout for stdout, _ in ended]


def test_process_0_builds_and_the_others_wait(tmp_path):
  port = str(free_port())
  pair = [
    start(['-m', 'tests.pipeline.hosts_worker', port, str(index), str(tmp_path)], 2)
    for index in (0, 1)
  ]
  first, second = (json.loads(stdout.splitlines()[-1]) for stdout in finish(pair))
  assert first['value'] == second['value'] == {'from': 0, 'text': 'x' * 3000}
  assert len(first['said']) == 10 and second['said'] == []
  assert first['said'][6:9] == [f'{n}: up to date' for n in ('alone', 'together', 'backbone')]
  assert first['imported'] == manifest.read_manifest(tmp_path / 'backbone').counts['params_sha256']
  assert first['failures'][0] == 'ZeroDivisionError: division by zero'
  assert first['failures'][1].startswith('TypeError: Object of type set')
  assert second['failures'][0].startswith("StageError: process 0 failed: ZeroDivisionError('div")
  assert first['failures'][2] == second['failures'][2] == 'the disk is full'
  assert manifest.read_manifest(tmp_path / 'alone').counts == {'index': 0}
  assert manifest.read_manifest(tmp_path / 'together').counts == {'devices': 2}
  assert [(tmp_path / 'together' / 'logs' / n).read_text() for n in '01'] == ['0', '0']


def test_who_is_one_of_many():
  assert hosts.launched_by({}, False) is None
  assert hosts.launched_by({'SLURM_STEP_NUM_TASKS': '1', 'SLURM_NTASKS': '8'}, False) is None
  assert hosts.launched_by({'SLURM_STEP_NUM_TASKS': '8'}, False) == 'SLURM_STEP_NUM_TASKS=8'
  assert hosts.launched_by({'OMPI_COMM_WORLD_SIZE': '2'}, False) == 'OMPI_COMM_WORLD_SIZE=2'
  assert hosts.launched_by({}, True) == 'the TPU'
  assert hosts.join() == hosts.ONE
  with pytest.raises(manifest.StageError, match="go together: given are 'a:1', None, 0"):
    hosts.join('a:1', None, 0)


def command(root: Path, documents: Path) -> list[str]:
  return [
    '-m', 'instructretro_jax', 'run', '--gin_file=tests/pipeline/hosts.gin', f'--root={root}',
    f"--gin.DOCUMENTS='{documents}/*.txt'",
  ]  # fmt: skip


def start_pair(root: Path, documents: Path, *more: str) -> list[subprocess.Popen]:
  port = free_port()
  flags = [f'--coordinator=localhost:{port}', '--num_processes=2']
  both = [*command(root, documents), *more, *flags]
  return [start([*both, f'--process_id={index}'], devices=4) for index in (0, 1)]


def metrics(root: Path, arm: str) -> list[dict]:
  lines = (root / arm / 'logs' / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
  """Equal curves and parameters, but for the order in which devices are summed."""
  for arm in ARMS:
    for name in ('step', 'loss', 'grad_norm'):
      curves = [[row[name] for row in metrics(root, arm)] for root in (one, other)]
      np.testing.assert_allclose(*curves, rtol=1e-6, err_msg=f'{arm} {name}')
    trees = [load_params(root / arm)[1] for root in (one, other)]
    flat = [dict(_flat(tree)) for tree in trees]
    assert flat[0].keys() == flat[1].keys()
    for path, x in flat[0].items():
      np.testing.assert_allclose(x, flat[1][path], atol=2e-5, err_msg=f'{arm} {path}')


def _flat(tree, prefix=''):
  for name, x in tree.items():
    if isinstance(x, dict):
      yield from _flat(x, f'{prefix}{name}/')
    else:
      yield f'{prefix}{name}', x


def wait_for_rows(root: Path, pair: list[subprocess.Popen], count: int) -> None:
  """Returns when the second arm has logged so many steps."""
  log = root / 'retro_fit' / 'logs' / 'metrics.jsonl'
  while not (log.exists() and log.read_text().count('\n') >= count):
    assert pair[1].poll() is None, pair[1].communicate()[1][-3000:]
    time.sleep(0.01)


@pytest.mark.slow(minutes=4)
def test_a_pair_of_which_one_machine_is_taken_away_saves_and_goes_on(tmp_path, tiny_documents):
  whole, told = tmp_path / 'whole', tmp_path / 'told'
  more = ('--to=retro_fit', '--gin.FIT_STEPS=90', '--gin.loop.Train.checkpoint_every=100')
  finish(start_pair(whole, tiny_documents, *more))
  shutil.copytree(whole, told)
  shutil.rmtree(told / 'retro_fit')
  pair = start_pair(told, tiny_documents, *more)
  wait_for_rows(told, pair, 3)
  pair[1].send_signal(signal.SIGTERM)
  ended = [process.communicate(timeout=60) for process in pair]
  assert [process.returncode for process in pair] == [75, 75], ended
  said = re.search(r'retro_fit: a machine .* is taken away: step (\d+) of 90', ended[0][1])
  saved = int(said[1])
  assert 3 <= saved < 90 and f'step {saved} of 90' in ended[1][1]
  # one that is killed right after the signal loses no more than any that is killed
  pair = start_pair(told, tiny_documents, *more)
  wait_for_rows(told, pair, saved + 3)
  pair[0].send_signal(signal.SIGTERM)
  for process in pair:
    process.kill()
    process.communicate()
  assert Checkpoint(told / 'retro_fit').record['data']['example'] >= 8 * (saved + 2)
  finish(start_pair(told, tiny_documents, *more))
  manifests = [(root / 'retro_fit' / manifest.MANIFEST).read_bytes() for root in (whole, told)]
  assert manifests[0] == manifests[1]


@pytest.mark.slow(minutes=7)
def test_two_processes_train_as_one_does(tmp_path, tiny_documents):
  one, two, killed, alone = (tmp_path / name for name in ('one', 'two', 'killed', 'alone'))
  finish([start(command(one, tiny_documents), devices=8)])
  said = finish(start_pair(two, tiny_documents))
  assert 'retro_fit: done' in said[0] and 'retro_fit' not in said[1]
  assert_same_run(one, two)

  # a process dies between two checkpoints of the second arm; both are started again
  shutil.copytree(two, killed)
  for name in ('retro_fit', 'perplexity'):
    shutil.rmtree(killed / name)
  pair = start_pair(killed, tiny_documents)
  wait_for_rows(killed, pair, 3)
  pair[1].kill()  # SIGKILL
  assert pair[0].wait(timeout=600) != 0  # it cannot go on alone, and ends by itself
  assert not (killed / 'retro_fit' / manifest.MANIFEST).exists()
  done = Checkpoint(killed / 'retro_fit').record['data']['example']
  assert done < Checkpoint(two / 'retro_fit').record['data']['example']
  shutil.copytree(killed, alone)
  finish(start_pair(killed, tiny_documents))
  # the same bytes: parameters, counts, plan
  for name in (p.parent.name for p in two.glob(f'*/{manifest.MANIFEST}')):
    found = [(root / name / manifest.MANIFEST).read_bytes() for root in (two, killed)]
    assert found[0] == found[1], name
  # and one process goes on with what two have begun
  finish([start(command(alone, tiny_documents), devices=8)])
  assert_same_run(one, alone)

"""A run whose root is in a store: as on disk, killed at any time, its store away for a while."""

from collections.abc import Callable
import os
from pathlib import Path
import random
import socket
import subprocess
import sys
import time

import pytest

from instructretro_jax.pipeline import experiment, gin_adapter, manifest

ROOT = Path(__file__).parents[2]
NUM_KILLS = 20


def fingerprints(root: Path) -> dict[str, str]:
  found = {folder.name: folder for folder in root.iterdir()}
  return {
    name: manifest.read_manifest(folder).fingerprint
    for name, folder in found.items()
    if manifest.is_finished(folder)
  }


def test_stages_give_what_they_give_on_disk(store, tmp_path, tiny_documents):
  made, _ = gin_adapter.configure(
    experiment.Experiment, ['tests/tiny.gin'], [f'DOCUMENTS = "{tiny_documents}/*.txt"']
  )
  names = ('corpus', 'vocabulary', 'chunks')
  made = experiment.Experiment(tuple(one for one in made.stages if one.name in names))
  for root in (store, tmp_path / 'disk'):
    experiment.run(made, root)
  assert fingerprints(store) == fingerprints(tmp_path / 'disk')
  assert not (store / 'run.lock').exists()
  said = []
  experiment.run(made, store, log=said.append)
  assert said == [f'{name}: up to date' for name in names]
  experiment.run(made, store, rebuild=('chunks',), log=said.append)
  assert fingerprints(store) == fingerprints(tmp_path / 'disk')


def start(root: Path, documents: Path, log: Path, *more: str) -> subprocess.Popen:
  environment = {**os.environ, 'JAX_NUM_CPU_DEVICES': '2'}
  command = [sys.executable, '-m', 'instructretro_jax', 'run', '--gin_file=tests/tiny.gin']
  command += [f'--root={root}', f"--gin.DOCUMENTS='{documents}/*.txt'", *more]
  with log.open('ab') as output:
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)


def wait_until(process: subprocess.Popen, is_time: Callable[[], bool]) -> bool:
  """False if the process ended before."""
  while process.poll() is None:
    if is_time():
      return True
    time.sleep(0.05)
  return False


@pytest.mark.slow(minutes=12)
@pytest.mark.packages
def test_a_run_in_a_store_ends_with_the_bytes_of_one_on_disk(
  store, emulator, tmp_path, tiny_documents, monkeypatch
):
  _, proxy, addresses, _ = emulator
  for name in addresses:
    monkeypatch.setenv(name, proxy.url)
  log, disk = tmp_path / 'log', tmp_path / 'disk'
  assert start(disk, tiny_documents, log).wait() == 0, log.read_text()

  killed, draw, kills = store / 'killed', random.Random(0), 0
  while kills < NUM_KILLS:
    process = start(killed, tiny_documents, log)
    end = time.monotonic() + draw.uniform(4, 14)  # it has started after about four
    if not wait_until(process, lambda: time.monotonic() > end):
      break  # it has come to its end
    process.kill()
    process.wait()
    kills += 1
  assert start(killed, tiny_documents, log).wait() == 0, log.read_text()
  assert kills >= 5, f'{kills} kills'
  assert fingerprints(killed) == fingerprints(disk)

  away = store / 'away'
  process = start(away, tiny_documents, log)
  assert wait_until(process, lambda: (away / 'gpt' / 'plan.json').exists()), log.read_text()
  proxy.is_down, before = True, proxy.num_refused
  time.sleep(10)
  proxy.is_down = False
  assert process.wait() == 0, log.read_text()
  assert proxy.num_refused > before
  assert fingerprints(away) == fingerprints(disk)


@pytest.mark.slow(minutes=3)
@pytest.mark.packages
def test_two_processes_write_one_checkpoint(store, tmp_path, tiny_documents):
  if str(store).startswith('s3://'):
    pytest.skip('several processes are refused there')
  log, disk = tmp_path / 'log', tmp_path / 'disk'
  for root in (store, disk):
    with socket.socket() as listening:
      listening.bind(('127.0.0.1', 0))
      port = listening.getsockname()[1]
    more = ('--to=gpt_fit', f'--coordinator=127.0.0.1:{port}', '--num_processes=2')
    both = [start(root, tiny_documents, log, *more, f'--process_id={n}') for n in range(2)]
    assert [process.wait() for process in both] == [0, 0], log.read_text()
  assert fingerprints(store) == fingerprints(disk)

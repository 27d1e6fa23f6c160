"""`kill -9` in every stage and inside every training arm: the run ends as if nothing had been."""

from collections.abc import Callable
import json
import os
from pathlib import Path
import subprocess
import sys
import time

import numpy as np
import pytest

from instructretro_jax.pipeline import manifest

ROOT = Path(__file__).parent.parent
ARMS = ('gpt', 'gpt_fit', 'retro_fit', 'retro_frozen', 'gpt_instruct', 'retro_instruct')
STAGES = (
  'corpus', 'questions', 'vocabulary', 'chunks', 'embeddings', 'index', 'neighbours', *ARMS,
  'perplexity', 'questions_eval', 'report',
)  # fmt: skip


def start(root: Path, documents: Path, *more: str, devices: int = 8) -> subprocess.Popen:
  environment = {**os.environ, 'JAX_NUM_CPU_DEVICES': str(devices)}
  command = [sys.executable, '-m', 'instructretro_jax', 'run', '--gin_file=tests/tiny.gin']
  command += [f'--root={root}', f"--gin.DOCUMENTS='{documents}/*.txt'", *more]
  return subprocess.Popen(
    command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
  )


def kill_when(process: subprocess.Popen, is_time: Callable[[], bool]) -> bool:
  """Kills the process at the first moment that `is_time`; False if it ended before."""
  while process.poll() is None:
    if is_time():
      process.kill()  # SIGKILL
      process.wait()
      return True
    time.sleep(0.01)
  return False


def has_begun(folder: Path) -> bool:
  return (folder / 'plan.json').exists() or (folder / manifest.MANIFEST).exists()


def is_past_a_checkpoint(folder: Path) -> bool:
  """Whether an arm has logged three steps; tests/tiny.gin saves every second one."""
  log = folder / 'logs' / 'metrics.jsonl'
  return log.exists() and log.read_text().count('\n') >= 3


@pytest.mark.slow(minutes=10)
@pytest.mark.packages
def test_a_run_killed_everywhere_ends_with_the_same_bytes(tmp_path, tiny_documents):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  assert start(whole, tiny_documents).wait() == 0
  moments = [(has_begun, name) for name in STAGES] + [(is_past_a_checkpoint, name) for name in ARMS]
  moments.sort(key=lambda moment: STAGES.index(moment[1]))
  hit = []
  for is_time, name in moments:
    if not (killed / name / manifest.MANIFEST).exists():
      kill_when(start(killed, tiny_documents), lambda f=is_time, name=name: f(killed / name))
      if not (killed / name / manifest.MANIFEST).exists():
        hit.append(f'{is_time.__name__} {name}')
  assert start(killed, tiny_documents).wait() == 0
  # a stage may be too quick to be caught; every arm must have died between two checkpoints
  assert {f'is_past_a_checkpoint {arm}' for arm in ARMS} <= set(hit), hit
  assert len(hit) >= len(moments) - 3, hit
  for name in STAGES:
    fingerprints = [manifest.read_manifest(root / name).fingerprint for root in (whole, killed)]
    assert fingerprints[0] == fingerprints[1], name


@pytest.mark.slow(minutes=3)
@pytest.mark.packages
def test_an_arm_killed_on_one_device_goes_on_upon_eight_in_another_way(tmp_path, tiny_documents):
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  arms = ['--to=retro_fit', '--gin.FIT_STEPS=50', '--gin.BATCH_SIZE=16']
  first = [*arms, '--gin.loop.Train.checkpoint_every=5']
  assert start(whole, tiny_documents, *first, devices=1).wait() == 0
  log = killed / 'retro_fit' / 'logs' / 'metrics.jsonl'
  is_at_37 = lambda: log.exists() and log.read_text().count('\n') >= 37
  assert kill_when(start(killed, tiny_documents, *first, devices=1), is_at_37)
  other = [
    *arms, '--gin.fit/loop.Train.num_microbatches=2', "--gin.Execution.remat='save_nothing'",
    '--gin.Execution.scan_layers=True',
  ]  # fmt: skip
  assert start(killed, tiny_documents, *other, devices=8).wait() == 0
  losses = [
    [json.loads(line)['loss'] for line in (root / 'retro_fit/logs/metrics.jsonl').open()]
    for root in (whole, killed)
  ]
  assert len(losses[0]) == 50
  np.testing.assert_allclose(losses[0], losses[1], atol=1e-4)
  ways = [json.loads(line) for line in (killed / 'retro_fit/logs/execution.jsonl').open()]
  assert [way['execution']['mesh']['data'] for way in ways] == [1, 8]

"""docs/pods.md: what of it can be tried without a cluster."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib

import pytest
import yaml

from instructretro_jax.pipeline import manifest
from instructretro_jax.pipeline.hosts import PREEMPTED_STATUS
from tests.pipeline.test_hosts import ROOT, free_port

PAGE = (ROOT / 'docs' / 'pods.md').read_text()
IMAGE = ROOT / 'experiments' / 'image'
COMMAND = 'instructretro run --gin_file'


def block(language, start):
  """The one block of a language that begins so."""
  [found] = re.findall(rf'^```{language}\n({re.escape(start)}.*?)^```$', PAGE, re.M | re.S)
  return found


LOOP = block('bash', 'until')
SLURM = block('bash', '#!/bin/bash')
SERVICE, JOB = yaml.safe_load_all(block('yaml', 'apiVersion'))
POD = JOB['spec']['template']['spec']
[CONTAINER] = POD['containers']


def run_of(script):
  """The arguments of the one run in a script, without places."""
  [found] = re.findall(rf'{COMMAND}(?:.*\\\n)*.*', script)
  return places(shlex.split(found.replace('\\\n', ' ').removesuffix('; do'))[1:])


def places(arguments):
  return [re.sub('gs://BUCKET|/shared', 'PLACE', one) for one in arguments]


def test_all_launchers_start_the_run_that_step_3_began():
  [begun] = re.findall(rf'^{COMMAND}.*$', PAGE, re.M)
  *begun, stop = places(shlex.split(begun)[1:])
  assert stop == '--to=neighbours'
  assert run_of(LOOP) == run_of(SLURM) == places(CONTAINER['args']) == begun


@pytest.mark.parametrize('status, requeued', [(0, False), (1, False), (75, True)])
def test_slurm_queues_again_what_was_taken_away(tmp_path, status, requeued):
  for name, body in {'srun': f'exit {status}', 'scontrol': f'echo "$@" > {tmp_path}/said'}.items():
    (tmp_path / name).write_text(f'#!/bin/sh\n{body}\n')
    (tmp_path / name).chmod(0o755)
  (tmp_path / 'instructretro/.venv/bin').mkdir(parents=True)
  (tmp_path / 'instructretro/.venv/bin/activate').touch()
  environment = {'PATH': f'{tmp_path}:/usr/bin:/bin', 'SLURM_JOB_ID': '7'}
  done = subprocess.run(['bash', '-c', SLURM], cwd=tmp_path, env=environment)
  assert done.returncode == status
  assert (tmp_path / 'said').exists() == requeued
  if requeued:
    assert status == PREEMPTED_STATUS and (tmp_path / 'said').read_text() == 'requeue 7\n'


def test_the_manifest_makes_anew_what_was_taken_away_and_its_pods_find_each_other():
  first, *_ = JOB['spec']['podFailurePolicy']['rules']
  assert first == {'action': 'Ignore', 'onExitCodes': {'operator': 'In', 'values': [75]}}
  assert POD['restartPolicy'] == 'Never'  # else there is no podFailurePolicy
  name, count = JOB['metadata']['name'], JOB['spec']['completions']
  assert JOB['spec']['parallelism'] == count and JOB['spec']['completionMode'] == 'Indexed'
  assert POD['subdomain'] == SERVICE['metadata']['name']
  assert SERVICE['spec']['selector'] == {'job-name': name}
  values = {one['name']: one.get('value') for one in CONTAINER['env']}
  assert values['JAX_NUM_PROCESSES'] == str(count)
  assert values['JAX_COORDINATOR_ADDRESS'].startswith(f'{name}-0.{POD["subdomain"]}:')


@pytest.mark.slow(minutes=0.2)
def test_the_manifest_has_no_field_that_kubernetes_does_not_know():
  client = pytest.importorskip('kubernetes').client
  for kind, given in (('V1Service', SERVICE), ('V1Job', JOB)):
    api = client.ApiClient()
    known = api._ApiClient__deserialize(given, kind)  # leaves out what it does not know
    assert api.sanitize_for_serialization(known) == given


def test_the_image_has_what_it_installs():
  lines = (IMAGE / 'Dockerfile').read_text().splitlines()
  patterns = (IMAGE / 'Dockerfile.dockerignore').read_text().split()
  allowed = [pattern[1:] for pattern in patterns if pattern[0] == '!']
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())
  folders = {*project['tool']['setuptools']['package-dir'].values(), 'instructretro_jax'}
  assert {folder.split('/')[0] for folder in folders} <= set(allowed)
  assert {project['project']['readme'], 'pyproject.toml', 'requirements.*'} <= set(allowed)
  assert all(list(ROOT.glob(name)) for name in allowed)
  assert {'gpu', 'tpu'} <= set(project['project']['optional-dependencies'])
  assert f'ENTRYPOINT ["{next(iter(project["project"]["scripts"]))}"]' in lines


@pytest.mark.slow(minutes=4)
def test_the_loop_runs_two_processes_again_when_one_is_told_to_end(tmp_path, tiny_documents):
  root, bin_folder = tmp_path / 'run', tmp_path / 'bin'
  bin_folder.mkdir()
  program = bin_folder / 'instructretro'
  # each start is counted, and the loop's own arguments are left for those of a tiny run
  program.write_text(
    f'#!/bin/sh\necho $$ >> {tmp_path}/started_$JAX_PROCESS_ID\nexec {sys.executable} -m '
    f'instructretro_jax run --gin_file=tests/pipeline/hosts.gin --root={root} --to=retro_fit '
    f'--gin.FIT_STEPS=90 --gin.DOCUMENTS=\'"{tiny_documents}/*.txt"\'\n'
  )
  program.chmod(0o755)
  values = {one['name']: one.get('value') for one in CONTAINER['env']}
  address = values['JAX_COORDINATOR_ADDRESS']
  environment = {
    **os.environ,
    'PATH': f'{bin_folder}:{os.environ["PATH"]}',
    'JAX_NUM_CPU_DEVICES': '1',
    'JAX_NUM_PROCESSES': values['JAX_NUM_PROCESSES'],
    'JAX_COORDINATOR_ADDRESS': re.sub(r'.*:\d+', f'localhost:{free_port()}', address),
  }
  pair = [
    subprocess.Popen(
      ['bash', '-c', LOOP], cwd=ROOT, text=True, stderr=subprocess.PIPE,
      env=environment | {'JAX_PROCESS_ID': str(index)},
    )
    for index in (0, 1)
  ]  # fmt: skip
  try:
    log = root / 'retro_fit' / 'logs' / 'metrics.jsonl'
    while not (log.exists() and log.read_text().count('\n') > 2):
      assert all(loop.poll() is None for loop in pair)
      time.sleep(0.05)
    os.kill(int((tmp_path / 'started_1').read_text()), signal.SIGTERM)
    said = [loop.communicate(timeout=600)[1] for loop in pair]
  finally:
    for loop in pair:
      loop.kill()
  assert [loop.returncode for loop in pair] == [0, 0], said
  for index in (0, 1):
    assert len((tmp_path / f'started_{index}').read_text().split()) == 2
    assert re.search(r'retro_fit: a machine .* is taken away: step \d+ of 90 is saved', said[index])
  assert manifest.read_manifest(root / 'retro_fit').counts['steps'] == 90

"""experiments/xm_launch.py: the jobs of a sweep, what clouds would be asked, and two for real."""

import importlib.util
import os
from pathlib import Path
import subprocess
import sys

from absl import flags
import pytest

from instructretro_jax.commands import sweeping
from instructretro_jax.pipeline.manifest import StageError
from tests.commands.test_sweep import CUBE, SWEEP, num_runs

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / 'experiments' / 'xm_launch.py'
pytestmark = pytest.mark.slow(minutes=0.2)

IMAGE = 'registry.example/instructretro:1'


def grid(folder, axes):
  path = folder / 'grid.gin'
  path.write_text(SWEEP.format(experiment='tests/commands/sweep.gin', axes=axes))
  return str(path)


@pytest.fixture(scope='module')
def launcher():
  pytest.importorskip('xmanager')
  spec = importlib.util.spec_from_file_location('xm_launch', SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  flags.FLAGS(['xm_launch'])
  return module


@pytest.fixture
def jobs_on(launcher, tmp_path):
  """All jobs of a cube as XManager's, for a platform and resources."""

  def make(platform, *resources):
    prepared = sweeping.prepare([grid(tmp_path, CUBE)], (), Path('runs/cube'))
    where = launcher.executor(platform, list(resources))
    from xmanager.xm_local import executables

    image = executables.GoogleContainerRegistryImage('instructretro', IMAGE)
    made = [launcher.xm_job(job, image, where) for job in (prepared.shared, *prepared.jobs)]
    return prepared, made

  return make


def test_the_launcher_has_the_jobs_of_the_sweep(jobs_on):
  prepared, made = jobs_on('local')
  commands = [job.command() for job in (prepared.shared, *prepared.jobs)]
  assert [('instructretro', *job.args.to_list(str)) for job in made] == commands
  assert len(made) == 1 + 8 and made[1].name == 'left-a-right-x-seed-0'


@pytest.mark.parametrize(
  'resources, machine',
  [
    (('a100=8',), ('a2-highgpu-8g', 'NVIDIA_TESLA_A100', 8)),
    (('v100=4', 'cpu=16'), ('n1-highcpu-16', 'NVIDIA_TESLA_V100', 4)),
    (('tpu_v3=8',), ('cloud-tpu', 'TPU_V3', 8)),
  ],
)
def test_what_vertex_ai_is_asked(jobs_on, monkeypatch, resources, machine):
  from google.cloud import aiplatform_v1
  from xmanager.cloud import auth, vertex

  asked = []

  class CustomJob:
    resource_name = 'job'

    def __init__(self, **given):
      asked.append(given)

    def submit(self, **given):
      asked[-1]['submit'] = given

    def _dashboard_uri(self):
      return ''

  monkeypatch.setattr(vertex.aiplatform, 'CustomJob', CustomJob)
  monkeypatch.setattr(auth, 'get_bucket', lambda: 'bucket')
  monkeypatch.setattr(auth, 'get_service_account', lambda: 'account')
  client = vertex.Client(project='project')
  prepared, made = jobs_on('vertex', *resources)
  for job in made:
    client.launch('cube', [job])
  assert len(asked) == 9
  for job, given in zip((prepared.shared, *prepared.jobs), asked):
    [pool] = given['worker_pool_specs']
    assert list(pool.container_spec.args) == list(job.command()[1:])
    assert pool.container_spec.image_uri == IMAGE and pool.replica_count == 1
    kind = aiplatform_v1.AcceleratorType(pool.machine_spec.accelerator_type).name
    count = pool.machine_spec.accelerator_count
    assert (pool.machine_spec.machine_type, kind, count) == machine


def test_what_kubernetes_is_asked(jobs_on, monkeypatch):
  from xmanager.cloud import kubernetes

  asked = []

  class BatchV1Api:
    def __init__(self, _):
      pass

    def create_namespaced_job(self, namespace, body):
      asked.append(kubernetes.k8s_client.ApiClient().sanitize_for_serialization(body))

  monkeypatch.setattr(kubernetes.k8s_client, 'BatchV1Api', BatchV1Api)
  monkeypatch.setattr(kubernetes.Client, '_create_service', lambda *_: None)
  prepared, made = jobs_on('kubernetes', 'a100=2', 'cpu=8', 'ram=64e9')
  kubernetes.Client(api_client=object()).launch('1700000000000_1_{}'.format, made)
  assert len(asked) == 9
  for job, given in zip((prepared.shared, *prepared.jobs), asked):
    pod = given['spec']['template']['spec']
    [container] = pod['containers']
    assert container['image'] == IMAGE and container['args'] == list(job.command()[1:])
    limits = {'nvidia.com/gpu': '2', 'cpu': '8', 'memory': '64000000000'}
    assert container['resources'] == {'limits': limits}
    assert pod['nodeSelector'] == {'cloud.google.com/gke-accelerator': 'nvidia-tesla-a100'}
    assert pod['hostname'] == given['metadata']['name'] and len(pod['hostname']) <= 63
  assert asked[0]['metadata']['name'] == '1700000000000-1-shared'


@pytest.mark.parametrize(
  'platform, resources, words',
  [
    ('vertex', ['tpu_v5e=4x4'], 'asks vertex for no TPU_V5E'),
    ('kubernetes', ['tpu_v3=8'], 'asks kubernetes for no TPU_V3'),
    ('vertex', ['a101=8'], 'a101'),
    ('vertex', ['a100'], '--resources=a100'),
    ('local', ['cpu=2'], 'leave out --resources'),
  ],
)
def test_what_xmanager_cannot_ask_for_is_refused(launcher, platform, resources, words):
  with pytest.raises(StageError, match=words):
    launcher.executor(platform, resources)
  with pytest.raises(StageError, match='give --image'):
    launcher.packageable('vertex', None)


def test_two_jobs_run_here_after_what_they_share(launcher, tmp_path):
  root = tmp_path / 'sweep'
  root.mkdir()
  (root / 'fails_y').touch()
  given = [sys.executable, str(SCRIPT), f'--gin_file={grid(tmp_path, CUBE[1:2])}', f'--root={root}']
  environment = {**os.environ, 'HOME': str(tmp_path), 'PYTHONPATH': str(ROOT)}
  start = lambda *more: subprocess.run(
    [*given, *more], cwd=ROOT, env=environment, capture_output=True, text=True
  )
  ended = start('--', "--gin.LEFT='l'")
  assert ended.returncode == 1 and 'Traceback' not in ended.stderr
  assert ended.stderr.splitlines()[-1].startswith('error: RIGHT-y failed: ')
  assert '[right-y] error: y fails' in ended.stdout.splitlines()
  assert (root / 'RIGHT-x' / 'right' / 'text').read_text() == 'x'
  (root / 'fails_y').unlink()
  ended = start('--processes=1', '--', "--gin.LEFT='l'")
  assert ended.returncode == 0, ended.stderr
  said = ended.stdout.splitlines()
  assert '[right-x] right: up to date' in said and '[right-y] right: done in 0 s' in said
  assert (root / 'RIGHT-y' / 'left' / 'text').read_text() == 'l'
  for name in ('base', 'left'):
    assert num_runs(root / 'shared' / name) == 1
    assert (root / 'RIGHT-x' / name).is_symlink() and (root / 'RIGHT-y' / name).is_symlink()
  assert (tmp_path / '.xmanager').is_dir()  # and nothing beside it in the HOME of who tests
  ended = start('--', '--gin.LEFT')
  assert ended.returncode == 1 and 'Traceback' not in ended.stderr
  assert 'overrides look like' in ended.stderr.splitlines()[-1]

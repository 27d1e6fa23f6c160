"""The wheel holds every module and every gin file, and runs an experiment in an empty folder."""

import os
from pathlib import Path
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ('instructretro_jax', 'gin', 'experiments')
FILES = ('pyproject.toml', 'README.md', 'LICENSE', 'requirements.in')


@pytest.fixture(scope='module')
def unpacked(tmp_path_factory):
  """The folder of an unpacked wheel, built from a copy so that the checkout stays clean."""
  folder = tmp_path_factory.mktemp('wheel')
  source = folder / 'source'
  for name in SOURCES:
    ignored = shutil.ignore_patterns('__pycache__', '*.json')
    shutil.copytree(ROOT / name, source / name, ignore=ignored)
  for name in FILES:
    shutil.copy(ROOT / name, source / name)
  # with the packages that are here: nothing is downloaded
  options = ['--no-deps', '--no-build-isolation', '--disable-pip-version-check']
  command = [sys.executable, '-m', 'pip', 'wheel', *options, '-w', str(folder), str(source)]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  (wheel,) = folder.glob('*.whl')
  zipfile.ZipFile(wheel).extractall(folder / 'unpacked')
  return folder / 'unpacked'


def files_of(folder, *patterns):
  return {str(p.relative_to(folder)) for pattern in patterns for p in folder.rglob(pattern)}


def test_every_module_template_and_gin_file_is_in_it(unpacked):
  package = files_of(ROOT / 'instructretro_jax', '*.py', '*.j2', '*.txtpb')
  package.add('configs/experiments/xm_launch.py')
  assert files_of(unpacked / 'instructretro_jax', '*.py', '*.j2', '*.txtpb') == package
  for name in ('gin', 'experiments'):
    there = files_of(unpacked / 'instructretro_jax' / 'configs' / name, '*')
    folders = {str(parent) for file in there for parent in Path(file).parents}
    scripts = {path.name for path in (ROOT / name).glob('*.py')}
    assert there - folders == files_of(ROOT / name, '*.gin') | scripts
  tops = {path.name for path in unpacked.iterdir() if not path.name.endswith('.dist-info')}
  assert tops == {'instructretro_jax'}


def test_it_runs_an_experiment_in_an_empty_folder(unpacked, tmp_path):
  environment = os.environ | {'PYTHONPATH': str(unpacked)}
  call = lambda *arguments: subprocess.run(
    [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
  )
  where = call('-c', 'import instructretro_jax; print(instructretro_jax.__file__)')
  assert where.stdout.strip() == str(unpacked / 'instructretro_jax' / '__init__.py')
  done = call(
    '-m', 'instructretro_jax', 'run', '--gin_file=experiments/quickstart/run.gin', '--dry_run'
  )
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert lines[0] == 'corpus: would run' and lines[-1] == 'report: would run'
  assert not list(tmp_path.iterdir())

"""Names of topologies, and what is said where the compiler is missing."""

import importlib.util
import subprocess
import sys

import pytest

from instructretro_jax.pipeline import manifest
from instructretro_jax.precompile import topology


def test_names():
  pod = topology.parse('v5p:4x8x8')
  assert (pod.num_chips, pod.chip.platform, str(pod)) == (256, 'tpu', 'v5p:4x8x8')
  hosts = topology.parse('h100:4x8')
  assert (hosts.num_chips, hosts.chip.platform) == (32, 'cuda')


@pytest.mark.parametrize('name', ['v5p:4x8', 'v5p', 'v5p-256', 'v7:4x8x8', 'h100:0x8', 'v5e:4x8,'])
def test_other_names_are_refused(name):
  with pytest.raises(manifest.StageError, match=f'{name!r} is none of v5p:NxNxN'):
    topology.parse(name)


def test_the_clock_of_a_chip_makes_its_peak():
  v5p, v5e = topology.CHIPS['v5p'], topology.CHIPS['v5e']
  assert 2 * 4 * 128 * 128 * 2 * v5p.clock_hz == pytest.approx(v5p.peak_flops, rel=2e-3)
  assert 4 * 128 * 128 * 2 * v5e.clock_hz == pytest.approx(v5e.peak_flops, rel=2e-3)


@pytest.mark.parametrize(
  'name, module, extra', [('v5p:4x4x4', 'libtpu', 'tpu'), ('h100:1x8', 'jax_plugins', 'gpu')]
)
def test_without_its_compiler_the_extra_is_named(name, module, extra, monkeypatch):
  find_spec = importlib.util.find_spec
  hide = lambda wanted: None if wanted.startswith(module) else find_spec(wanted)
  monkeypatch.setattr(importlib.util, 'find_spec', hide)
  with pytest.raises(manifest.StageError, match=rf'instructretro-jax\[{extra}\]'):
    topology.devices(topology.parse(name))


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is not None, reason='libtpu is here')
def test_the_command_says_so_in_a_line():
  command = ['precompile', '--gin_file=experiments/quickstart/run.gin', '--topology=v5p:2x2x1']
  done = subprocess.run(
    [sys.executable, '-m', 'instructretro_jax', *command], capture_output=True, text=True
  )
  assert done.returncode == 1 and done.stdout == ''
  assert done.stderr.splitlines()[-1].startswith('error: libtpu is not installed')

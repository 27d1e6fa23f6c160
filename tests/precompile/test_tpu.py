"""Steps compiled by the real compiler of TPUs; minutes, in an environment that has libtpu."""

import importlib.util
import json
from pathlib import Path
import subprocess
import sys

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import pytest

from instructretro_jax.precompile import counts, hlo, topology
from instructretro_jax.sharding import MeshConfig, make_mesh

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu'),
]
ROOT = Path(__file__).resolve().parents[2]


def precompile(file, target, path, *options):
  command = ['precompile', f'--gin_file=experiments/paper/{file}.gin', f'--topology={target}']
  done = subprocess.run(
    [sys.executable, '-m', 'instructretro_jax', *command, f'--json={path}', *options],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert 'static estimate' in done.stdout and 'measured' not in done.stdout
  return json.loads(path.read_text())


def gather(devices):
  """Counts of a product with a weight that 64 chips hold together."""
  mesh = make_mesh(MeshConfig(fsdp=64), devices)
  place = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))
  array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place('fsdp'))

  def product(x, w):
    return x @ jax.lax.with_sharding_constraint(w, place())

  arguments = array(64 * 128, 1024), array(1024, 1024)
  return counts.count(hlo.parse(jax.jit(product).lower(*arguments).compile().as_text()))


def test_a_torus_gathers_and_a_bare_grid_adds_zeros():
  torus = gather(topology.devices(topology.parse('v5p:4x4x4')))
  grid = gather(topologies.get_topology_desc('v5p:4x4x4', 'tpu').devices)
  weight = 1024 * 1024 * 2
  assert torus.collectives['all-gather'].bytes == weight and torus.gathers_as_reduces == 0
  assert 'all-gather' not in grid.collectives and grid.gathers_as_reduces == weight
  assert torus.matmul_flops == grid.matmul_flops == 2 * 128 * 1024 * 1024
  assert 0 < torus.cycles < grid.cycles


@pytest.mark.parametrize(
  'file, target, peak_gib, flops_ratio',
  [
    ('retro_878m/retrofit', 'v5p:2x2x4', 40, 1.33),  # much of it the head, which is made again
    ('retro_48b/retrofit', 'v5p:4x8x8', 80, 1.26),
    ('retro_48b/gpt_fit', 'v5p:4x8x8', 70, 1.25),
  ],
)
def test_the_smallest_and_the_largest_fit(file, target, peak_gib, flops_ratio, tmp_path):
  found = precompile(file, target, tmp_path / 'found.json')
  assert found['fits'] and found['peak_bytes'] < peak_gib * 2**30
  assert 1 < found['flops_over_model_flops'] < flops_ratio
  assert 0.1 < found['mfu_lower'] < found['mfu_upper'] < 0.8
  # the norms' gradients, vectors, are gathered by adding; no matrix is
  assert found['gathers_as_reduces'] < 1e-3 * found['collectives']['all-gather']['bytes']
  assert found['open_loops'] == [] and found['unknown_kernels'] == []
  forward = found['kernels']['splash_mha_fwd_segmented_residuals']
  assert forward == (24 if '878m' in file else 48)  # once a layer: none is computed again


def test_four_chips_have_no_room_for_48b(tmp_path):
  options = ['--gin.sharding.MeshConfig.fsdp=4', '--batch_size=4']
  found = precompile('retro_48b/retrofit', 'v5p:2x2x1', tmp_path / 'found.json', *options)
  assert found['fits'] is False and found['peak_bytes'] > 95 * 2**30
  assert found['flops'] is None


def test_instruction_tuning_with_a_closed_gate_compiles_to_the_gpt(tmp_path):
  retro, gpt = (
    precompile(
      'retro_878m/instruct',
      'v5p:2x2x4',
      tmp_path / f'{arm}.json',
      '--step=instruct',
      f'--arm={arm}',
    )
    for arm in ('retro_instruct', 'gpt_instruct')
  )
  assert retro['parameters'] > retro['trained_parameters'] == gpt['trained_parameters']
  assert retro['flops'] == gpt['flops'] and retro['kernels'] == gpt['kernels']

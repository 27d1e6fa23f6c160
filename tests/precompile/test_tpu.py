"""Steps compiled by the real compiler of TPUs; minutes, in an environment that has libtpu."""

import importlib.util
import json
import os
from pathlib import Path
import subprocess
import sys

import jax
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import pytest

from instructretro_jax.model.peaks import peak_flops
from instructretro_jax.model.sharding import MeshConfig, constrain, make_mesh
from instructretro_jax.precompile import counts, hlo, topology
from instructretro_jax.train.losses import total_loss

pytestmark = [
  pytest.mark.slow(minutes=2),
  pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='needs libtpu'),
]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def optimised():
  """As users compile, not as tests/conftest.py has it."""
  jax.config.update('jax_disable_most_optimizations', False)
  jax.config.update('jax_enable_compilation_cache', False)
  yield
  jax.config.update('jax_disable_most_optimizations', True)
  jax.config.update('jax_enable_compilation_cache', True)


def precompile(size, phase, target, path, *options):
  files = [f'--gin_file=experiments/paper/{phase}.gin', f'--gin_file=gin/paper/{size}.gin']
  command = ['precompile', *files, f'--topology={target}']
  ours = ('XLA_FLAGS', 'JAX_COMPILATION_CACHE_DIR')  # of tests/conftest.py
  done = subprocess.run(
    [sys.executable, '-m', 'instructretro_jax', *command, f'--json={path}', *options],
    cwd=ROOT,
    env={name: value for name, value in os.environ.items() if name not in ours},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert 'static estimate' in done.stdout and 'measured' not in done.stdout
  return json.loads(path.read_text())


def count(function, devices, *arguments):
  """Counts of a function of arrays, each a shape and a dtype, that 64 chips hold together."""
  mesh = make_mesh(MeshConfig(fsdp=64), devices)
  split = NamedSharding(mesh, PartitionSpec('fsdp'))
  place = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=split)
  with jax.set_mesh(mesh):
    lowered = jax.jit(function).lower(*(place(*argument) for argument in arguments))
    return counts.count(hlo.parse(lowered.compile().as_text()))


def gather(devices):
  """Counts of a product with a weight that the chips hold together."""
  product = lambda x, w: x @ constrain(w, 'act_embed', 'act_embed')
  return count(product, devices, ((64 * 128, 1024), jnp.bfloat16), ((1024, 1024), jnp.bfloat16))


def test_a_torus_gathers_and_a_bare_grid_adds_zeros():
  torus = gather(topology.devices(topology.parse('v5p:4x4x4')))
  grid = gather(topologies.get_topology_desc('v5p:4x4x4', 'tpu').devices)
  weight = 1024 * 1024 * 2
  assert torus.collectives['all-gather'].bytes == weight and torus.gathers_as_reduces == 0
  assert 'all-gather' not in grid.collectives and grid.gathers_as_reduces == weight
  assert torus.matmul_flops == grid.matmul_flops == 2 * 128 * 1024 * 1024
  assert 0 < torus.cycles < grid.cycles


@pytest.mark.parametrize('name', ['v5p:2x2x1', 'v5e:2x2', 'v6e:2x2'])
def test_the_peak_of_a_chip_is_found_by_the_name_of_its_devices(name):
  target = topology.parse(name)
  (kind,) = {device.device_kind for device in topology.devices(target)}
  assert peak_flops(kind) == target.chip.peak_flops


def test_the_gradient_of_the_head_is_added_up_once():
  B, L, D, V = 64, 4096, 1024, 32_000

  def loss(hidden, head, targets, weights):
    found, grads = jax.value_and_grad(total_loss, (0, 1))(hidden, head, targets, weights)
    return found, grads[0], constrain(grads[1], 'embed', 'vocab')

  arguments = (((B, L, D), jnp.bfloat16), ((D, V), jnp.float32), ((B, L), jnp.int32))
  devices = topology.devices(topology.parse('v5p:4x4x4'))
  found = count(loss, devices, *arguments, ((B, L), jnp.float32))
  size = D * V
  assert found.collectives['all-gather'].bytes == 2 * size
  assert found.collectives['all-reduce'].bytes == 4 * size + 4  # in float32; and the loss
  assert found.matmul_flops == 3 * 2 * L * D * V
  assert found.gathers_as_reduces == 0 and not found.open_loops


@pytest.mark.slow(minutes=3)
@pytest.mark.parametrize(
  'size, phase, target, num_microbatches, peak_gib, flops_ratio',
  [
    ('retro_878m', 'retrofit', 'v5p:2x2x4', 1, 40, 1.33),
    ('retro_48b', 'retrofit', 'v5p:4x8x8', 1, 80, 1.25),
    ('retro_48b', 'retrofit', 'v5p:4x8x8', 3, 60, 1.18),
    ('retro_48b', 'gpt_fit', 'v5p:4x8x8', 1, 70, 1.24),
  ],
)
def test_the_smallest_and_the_largest_fit(
  size, phase, target, num_microbatches, peak_gib, flops_ratio, tmp_path
):
  options = [f'--gin.loop.Train.num_microbatches={num_microbatches}']
  if num_microbatches > 1:
    options.append("--gin.execution.Execution.remat='save_narrow_products'")
  found = precompile(size, phase, target, tmp_path / 'found.json', *options)
  assert found['fits'] and found['peak_bytes'] < peak_gib * 2**30
  assert 1 < found['flops_over_model_flops'] < flops_ratio
  assert 0.1 < found['mfu_lower'] < found['mfu_upper'] < 0.8
  # the norms' gradients, vectors, are gathered by adding; no matrix is
  assert found['gathers_as_reduces'] < 1e-3 * found['collectives']['all-gather']['bytes']
  assert found['open_loops'] == [] and found['unknown_kernels'] == []
  forward = found['kernels']['splash_mha_fwd_segmented_residuals']
  # once a layer: none is computed again
  assert forward == num_microbatches * (24 if '878m' in size else 48)


def test_four_chips_have_no_room_for_48b(tmp_path):
  options = ['--gin.sharding.MeshConfig.fsdp=4', '--batch_size=4']
  found = precompile('retro_48b', 'retrofit', 'v5p:2x2x1', tmp_path / 'found.json', *options)
  assert found['fits'] is False and found['peak_bytes'] > 95 * 2**30
  assert found['flops'] is None


@pytest.mark.slow(minutes=4)
def test_instruction_tuning_with_a_closed_gate_compiles_to_the_gpt(tmp_path):
  retro, gpt = (
    precompile(
      'retro_878m',
      'instruct',
      'v5p:2x2x4',
      tmp_path / f'{arm}.json',
      '--step=instruct',
      f'--arm={arm}',
    )
    for arm in ('retro_instruct', 'gpt_instruct')
  )
  assert retro['parameters'] > retro['trained_parameters'] == gpt['trained_parameters']
  assert retro['flops'] == gpt['flops'] and retro['kernels'] == gpt['kernels']

"""From a compiled step to figures: does it fit, and how fast can it be at best?

Everything here is a static estimate. No step was run.

- `floor_seconds`: cycles that the compiler estimates for its instructions, at the chip's clock, and
  attention kernels at the chip's peak; collectives cost nothing. The GPU compiler estimates no
  cycles, and the floor is all FLOPs at peak.
- `mfu_upper`: model FLOPs at peak over the floor, as if all communication were hidden.
- `mfu_lower`: the same with all communication in series, at the bandwidth of all links together
  (an all-reduce twice, a permutation at that of one link). A real run may hide some of it.

The one calibration: MaxText's Llama-2 70B on 512 v5p chips has a floor of 23.57 s this way and was
published at 23.68 s (65.4 % MFU, docs/reference/models/tiering.md), ratio 0.996. Trust it to 10 %.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh

from instructretro_jax.model.sharding import make_mesh
from instructretro_jax.pipeline import manifest
from instructretro_jax.pipeline.experiment import Experiment
from instructretro_jax.precompile import counts, hlo, operations, steps, topology

KIND = 'static estimate'
CALIBRATED = f'{KIND}, calibrated on one published point'
UNCALIBRATED = f'{KIND}, uncalibrated'
_OF_COMPILED = (
  'argument_bytes',
  'flops',
  'matmul_flops',
  'kernel_flops',
  'kernels',
  'unknown_kernels',
  'flops_over_model_flops',
  'cycles',
  'floor_seconds',
  'collective_seconds',
  'mfu_upper',
  'mfu_lower',
  'collectives',
  'gathers_as_reduces',
  'open_loops',
  'operations',
)
_NUM_OPERATIONS = 40  # of a step, in the figures
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


def precompile(
  experiment: Experiment,
  topology_name: str,
  *,
  step: str,
  arm_name: str | None = None,
  batch_size: int | None = None,
  hlo_path: Path | None = None,
) -> dict[str, Any]:
  """Figures of a step of an experiment on a topology, see `estimate`.

  Raises StageError for an unknown topology or arm, a missing compiler, or a mesh or batch size that
  does not fit the number of chips.
  """
  target = topology.parse(topology_name)
  arm = steps.find_arm(experiment, step, arm_name)
  devices = topology.devices(target)
  try:
    mesh = make_mesh(arm.mesh, devices)  # orders the devices along the torus
  except ValueError as error:
    raise manifest.StageError(
      f'{target}: {error}; give a file of gin/meshes as a further --gin_file, or '
      '--gin.sharding.MeshConfig.fsdp=N'
    ) from error
  made = steps.make_step(arm, step, mesh, batch_size)
  named = {'arm': arm.name, 'step': step, 'batch_size': batch_size or arm.batch_size}
  return named | estimate(made, mesh, target, hlo_path)


def estimate(
  step: steps.Step, mesh: Mesh, target: topology.Topology, hlo_path: Path | None = None
) -> dict[str, Any]:
  """Compiles the step and returns its figures; bytes, FLOPs and seconds are of one chip.

  A step that does not fit has `fits` False, the bytes that the compiler asked for, and None for
  what only a compiled step tells.

  Args:
    hlo_path: file to write the compiled program to.
  """
  began = time.monotonic()
  lowered = step.lower(mesh)
  lowered_at = time.monotonic()
  compiled, asked_bytes = compile_or_size(lowered)
  figures = {
    'kind': KIND,
    'label': CALIBRATED if target.kind == 'v5p' else UNCALIBRATED,
    'topology': str(target),
    'mesh': dict(mesh.shape),
    'parameters': step.parameters,
    'trained_parameters': step.trained_parameters,
    'jax': jax.__version__,
    'compiler': topology.compiler_version(target),
    'lower_seconds': round(lowered_at - began, 1),
    'compile_seconds': round(time.monotonic() - lowered_at, 1),
    'hbm_bytes': target.chip.hbm_bytes,
    'model_flops': step.model_flops / target.num_chips,
    'model_flops_masked': step.model_flops_masked / target.num_chips,
  }
  if compiled is None:
    return figures | dict.fromkeys(_OF_COMPILED) | {'fits': False, 'peak_bytes': asked_bytes}
  text = compiled.as_text()
  if hlo_path is not None:
    manifest.write_text(hlo_path, text)
  module = hlo.parse(text)
  slowest = operations.slowest(module, target.chip)
  return (
    figures
    | memory(compiled, target.chip)
    | speed(counts.count(module), step, target)
    | {'operations': [dataclasses.asdict(o) for o in slowest[:_NUM_OPERATIONS]]}
  )


def compile_or_size(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled | None, int]:
  """The compiled step, or None and the bytes it would take where the compiler has no room."""
  try:
    return lowered.compile(), 0
  except jax.errors.JaxRuntimeError as error:
    asked = asked_bytes(str(error))
    if asked is None:
      raise
    return None, asked


def asked_bytes(message: str) -> int | None:
  """Bytes of HBM that a step asked for, from the compiler's refusal; None if it is about else."""
  used = re.search(r'Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm', message)
  found = used or re.search(r'HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds', message)
  return int(float(found.group(1)) * _UNITS[found.group(2)]) if found else None


def memory(compiled: jax.stages.Compiled, chip: topology.Chip) -> dict[str, Any]:
  """Bytes of arguments, and the most that is alive at any time."""
  analysis = compiled.memory_analysis()
  peak = analysis.peak_memory_in_bytes or (
    analysis.argument_size_in_bytes
    + analysis.output_size_in_bytes
    - analysis.alias_size_in_bytes
    + analysis.temp_size_in_bytes
  )
  return {
    'fits': chip.platform == 'tpu' or peak <= chip.hbm_bytes,  # the TPU compiler refuses by itself
    'argument_bytes': analysis.argument_size_in_bytes,
    'peak_bytes': peak,
  }


def speed(counted: counts.Counts, step: steps.Step, target: topology.Topology) -> dict[str, Any]:
  """FLOPs, floor and bounds of model-FLOP utilisation; see the top of this module."""
  chip = target.chip
  model_flops = step.model_flops / target.num_chips
  if chip.clock_hz is None:
    floor = counted.flops / chip.peak_flops
  else:
    floor = counted.cycles / chip.clock_hz + counted.kernel_flops / chip.peak_flops
  collective_seconds = serial_seconds(counted.collectives, chip)
  ideal = model_flops / chip.peak_flops
  return {
    'flops': counted.flops,
    'matmul_flops': counted.matmul_flops,
    'kernel_flops': counted.kernel_flops,
    'kernels': counted.kernels,
    'unknown_kernels': counted.unknown_kernels,
    'flops_over_model_flops': counted.flops / model_flops,
    'cycles': counted.cycles if chip.clock_hz else None,
    'floor_seconds': floor,
    'collective_seconds': collective_seconds,
    'mfu_upper': ideal / floor,
    'mfu_lower': ideal / (floor + collective_seconds),
    'collectives': {kind: dataclasses.asdict(c) for kind, c in counted.collectives.items()},
    'gathers_as_reduces': counted.gathers_as_reduces,
    'open_loops': counted.open_loops,
  }


def serial_seconds(collectives: dict[str, counts.Collective], chip: topology.Chip) -> float:
  """Time of all collectives one after the other."""
  seconds = 0.0
  for kind, collective in collectives.items():
    passes = 2 if kind == 'all-reduce' else 1
    one_link = kind == 'collective-permute'
    rate = chip.link_bytes_per_s if one_link else chip.network_bytes_per_s
    seconds += passes * collective.bytes / rate
  return seconds

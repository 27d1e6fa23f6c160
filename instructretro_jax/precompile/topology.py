"""Accelerators that are not here: their devices for the compiler, and what they can do."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import importlib.metadata
import importlib.resources
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from instructretro_jax.model.peaks import PEAK_FLOPS
from instructretro_jax.pipeline import manifest

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """Published figures of one chip.

  Attributes:
    hbm_bytes: what the compiler may use; for TPUs it has its own figure and refuses beyond it.
    link_bytes_per_s: one link to another chip, one way.
    clock_hz: of the cycles that the compiler estimates; None where it estimates none.
  """

  platform: str  # 'tpu' or 'cuda'
  num_axes: int  # of a topology's name
  peak_flops: float  # per second
  hbm_bytes: float
  num_links: int
  link_bytes_per_s: float
  clock_hz: float | None = None

  @property
  def network_bytes_per_s(self) -> float:
    """All links together, one way."""
    return self.num_links * self.link_bytes_per_s


# TPUs: docs.cloud.google.com/tpu/docs/{v5p,v5e,v6e}. Links: Google prints both ways per chip (4800,
# 1600 and 3200 Gbit/s); one way of one link is 90 % of its share, as jax-ml.github.io/scaling-book
# has it. The clock is what makes the peak of the matrix units: v5p 2 cores x 4 units x 128 x 128 x
# 2 FLOPs x 1.75 GHz. H100 SXM5: NVIDIA's data sheet, without sparsity; memory as its driver tells;
# NVLink 450 GB/s one way, and hosts joined by eight 400 Gbit/s adapters, which do not slow a
# hierarchical collective.
CHIPS = {
  'v5p': Chip(
    platform='tpu',
    num_axes=3,
    peak_flops=PEAK_FLOPS['v5p'],
    hbm_bytes=95 * GIB,
    num_links=6,
    link_bytes_per_s=90e9,
    clock_hz=1.75e9,
  ),
  'v5e': Chip(
    platform='tpu',
    num_axes=2,
    peak_flops=PEAK_FLOPS['v5e'],
    hbm_bytes=16 * GIB,
    num_links=4,
    link_bytes_per_s=45e9,
    clock_hz=1.5e9,
  ),
  'v6e': Chip(
    platform='tpu',
    num_axes=2,
    peak_flops=PEAK_FLOPS['v6e'],
    hbm_bytes=32 * GIB,
    num_links=4,
    link_bytes_per_s=90e9,
    clock_hz=1.75e9,
  ),
  'h100': Chip(
    platform='cuda',
    num_axes=2,
    peak_flops=PEAK_FLOPS['h100'],
    hbm_bytes=84_978_434_048,
    num_links=1,
    link_bytes_per_s=450e9,
  ),
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """Chips and their arrangement, e.g. `v5p:4x8x8` (a torus) or `h100:4x8` (hosts x GPUs)."""

  kind: str
  grid: tuple[int, ...]

  @property
  def chip(self) -> Chip:
    """What one of its chips can do."""
    return CHIPS[self.kind]

  @property
  def num_chips(self) -> int:
    """Chips of the whole slice."""
    return math.prod(self.grid)

  def __str__(self) -> str:
    return f'{self.kind}:{"x".join(map(str, self.grid))}'


def parse(name: str) -> Topology:
  """The topology of that name. Raises StageError for one that is none."""
  kind, colon, grid = name.partition(':')
  sizes = tuple(map(int, grid.split('x'))) if re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', grid) else ()
  if kind not in CHIPS or not colon or len(sizes) != CHIPS[kind].num_axes:
    forms = [f'{kind}:{"x".join("N" * chip.num_axes)}' for kind, chip in CHIPS.items()]
    raise manifest.StageError(f'topology {name!r} is none of {", ".join(forms)}')
  return Topology(kind, sizes)


def devices(topology: Topology) -> Sequence[jax.Device]:
  """Devices that only the compiler knows, one a chip.

  Raises StageError without the compiler's package, or for a grid that it does not have.
  """
  describe = _tpu if topology.chip.platform == 'tpu' else _cuda
  try:
    return describe(topology).devices
  except (RuntimeError, ValueError) as error:
    raise manifest.StageError(f'the compiler does not know {topology}: {error}') from error


def compiler_version(topology: Topology) -> str:
  """Package and version that compile for the topology."""
  package = 'libtpu' if topology.chip.platform == 'tpu' else 'jaxlib'
  return f'{package} {importlib.metadata.version(package)}'


def _tpu(topology: Topology) -> topologies.TopologyDescription:
  _require('libtpu', 'tpu')
  # A CPU machine asks no metadata server, and several compilers may run beside each other.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  grid = topology.grid
  if topology.kind == 'v5p':
    name, core, wrap = 'v5', 'megacore', (min(grid) >= 4,) * 3
  else:
    name, core, wrap = topology.kind, 'default', (*(size == 16 for size in grid), False)
  # Without the wrap of the torus, an all-gather is compiled as an all-reduce of padded zeros.
  return topologies.get_topology_desc(
    platform='tpu',
    topology_name=f'{name}:{"x".join(map(str, grid))}',
    chip_config_name=core,
    chips_per_host_bounds=(min(2, grid[0]), min(2, grid[1]), 1),
    num_slices=1,
    wrap=wrap,
  )


def _cuda(topology: Topology) -> topologies.TopologyDescription:
  _require('jax_plugins.xla_cuda12', 'gpu')
  target = importlib.resources.files(__package__) / f'{topology.kind}.txtpb'
  hosts, gpus = topology.grid
  return topologies.get_topology_desc(
    platform='cuda',
    topology_name=topology.kind,
    topology=f'1x{hosts}x{gpus}',
    target_config=target.read_text(),
  )


def _require(module: str, extra: str) -> None:
  try:
    found = importlib.util.find_spec(module)
  except ModuleNotFoundError:
    found = None
  if found is None:
    raise manifest.StageError(
      f'{module} is not installed, and compiles for this topology: '
      f"pip install 'instructretro-jax[{extra}]', on any machine"
    )

"""What a compiled step does on one device: matrix FLOPs, cycles, kernels and collectives."""

from __future__ import annotations

import collections
import dataclasses
import math
import re

import numpy as np

from instructretro_jax.precompile import hlo, kernels

COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-permute',
)
_NO_ESTIMATE = 1 << 60  # the compiler's mark for "unknown"


@dataclasses.dataclass
class Collective:
  """One kind of collective.

  Attributes:
    bytes: of what each device holds afterwards (of what it gives, for reduce-scatter), a step.
  """

  instructions: int = 0
  executions: float = 0
  bytes: float = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
  """Totals a step, loops counted by their trips.

  Attributes:
    matmul_flops: of matrix products that the compiler made itself.
    kernel_flops: of attention kernels, see precompile/kernels.py.
    kernels: executions by name.
    unknown_kernels: those whose FLOPs are not counted.
    cycles: the compiler's estimates; collectives and kernels have none.
    gathers_as_reduces: bytes that all-reduces gather, by adding shards to zeros.
    open_loops: loops of unknown length, counted as one pass.
  """

  matmul_flops: float
  kernel_flops: float
  kernels: dict[str, float]
  unknown_kernels: tuple[str, ...]
  cycles: float
  collectives: dict[str, Collective]
  gathers_as_reduces: float
  open_loops: tuple[str, ...]

  @property
  def flops(self) -> float:
    """All floating-point operations of a device."""
    return self.matmul_flops + self.kernel_flops


def count(module: hlo.Module) -> Counts:
  """Counts a compiled step."""
  matmul_flops = kernel_flops = cycles = 0.0
  executions: collections.Counter[str] = collections.Counter()
  unknown: set[str] = set()
  found: dict[str, Collective] = collections.defaultdict(Collective)
  gathers_as_reduces, open_loops = 0.0, []
  for executed in hlo.walk(module):
    instruction, times = executed.instruction, executed.times
    if kind := collective_kind(instruction):
      collective = found[kind]
      collective.instructions += 1
      collective.executions += times
      collective.bytes += times * collective_bytes(instruction, executed.computation)
      if kind == 'all-reduce':
        gathers_as_reduces += times * bytes_added_to_zeros(module, executed)
    elif instruction.opcode in ('dot', 'convolution'):
      matmul_flops += times * matrix_flops(instruction, executed.computation)
    elif (
      instruction.opcode == 'while'
      and hlo.trip_count(module, executed.computation, instruction) is None
    ):
      open_loops.append(instruction.name)
    elif (name := kernels.name_of(instruction)) is not None:
      executions[name] += times
      flops = kernels.attention_flops(instruction, executed.computation)
      kernel_flops += times * (flops or 0)
      unknown |= {name} if flops is None else set()
    if not executed.is_fused:
      cycles += times * estimated_cycles(instruction)
  return Counts(
    matmul_flops=matmul_flops,
    kernel_flops=kernel_flops,
    kernels=dict(executions),
    unknown_kernels=tuple(sorted(unknown)),
    cycles=cycles,
    collectives=dict(found),
    gathers_as_reduces=gathers_as_reduces,
    open_loops=tuple(open_loops),
  )


def collective_kind(instruction: hlo.Instruction) -> str | None:
  """One of `COLLECTIVES` where a collective begins, else None."""
  opcode = instruction.opcode.removesuffix('-start')
  return opcode if opcode in COLLECTIVES else None


def collective_bytes(instruction: hlo.Instruction, computation: hlo.Computation) -> float:
  """Bytes that a collective leaves on a device; of a reduce-scatter, those that it takes."""
  given = sum(
    array.num_bytes
    for name in instruction.operands
    if name in computation
    for array in computation[name].arrays
  )
  left = sum(array.num_bytes for array in instruction.arrays)
  if instruction.opcode.startswith('reduce-scatter'):
    return given
  if instruction.opcode.endswith('-start') and not instruction.opcode.startswith('all-reduce'):
    return left - given  # the shape holds the operands too
  return left


def bytes_added_to_zeros(module: hlo.Module, executed: hlo.Executed) -> float:
  """Bytes of operands that are one shard in a larger array: an all-gather in disguise."""

  def is_padded(name: str, computation: hlo.Computation) -> bool:
    found = computation.get(name)
    if found is None:
      return False
    if found.opcode == 'fusion':
      inner = module.computations[found.attribute('calls')]
      return is_padded(next(i.name for i in inner.values() if i.is_root), inner)
    if found.opcode in ('bitcast', 'copy', 'convert', 'reshape', 'transpose'):
      return is_padded(found.operands[0], computation)
    return found.opcode in ('dynamic-update-slice', 'pad')

  computation = executed.computation
  padded = [n for n in executed.instruction.operands if is_padded(n, computation)]
  return sum(array.num_bytes for name in padded for array in computation[name].arrays)


def estimated_cycles(instruction: hlo.Instruction) -> int:
  """The compiler's estimate; 0 where it has none."""
  found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
  cycles = int(found.group(1)) if found else 0
  return cycles if cycles < _NO_ESTIMATE else 0


def matrix_flops(instruction: hlo.Instruction, computation: hlo.Computation) -> float:
  """FLOPs of a dot or convolution, which is how a TPU writes matrix products."""
  (out,) = instruction.arrays
  one, other = (computation[name].arrays[0] for name in instruction.operands[:2])
  if instruction.opcode == 'dot':
    found = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', instruction.attributes)
    contracted = [int(n) for n in found.group(1).split(',') if n] if found else []
    return 2.0 * math.prod(out.sizes) * math.prod(one.sizes[n] for n in contracted)
  labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.attributes).groups()
  size = lambda array, labels, label: array.sizes[labels.index(label)]
  flops = 2.0 * size(other, labels[1], 'i') * size(out, labels[2], 'b') * size(out, labels[2], 'f')
  window = _window(instruction, labels)
  for n, label in enumerate(sorted(filter(str.isdigit, labels[0]))):
    axis = {key: values[n] for key, values in window.items()}
    sizes = [size(a, names, label) for a, names in zip((one, other, out), labels)]
    flops *= _window_products(*sizes, axis)
  return flops


def _window(instruction: hlo.Instruction, labels: tuple[str, ...]) -> dict[str, list[int]]:
  """Stride, dilations and low padding of each spatial axis of a convolution."""
  found = re.search(r'window=\{([^}]*)\}', instruction.attributes)
  given = dict(part.split('=') for part in found.group(1).split()) if found else {}
  num_axes = sum(map(str.isdigit, labels[0]))
  numbers = lambda key, default: [
    int(value.split('_')[0]) for value in given.get(key, 'x'.join([default] * num_axes)).split('x')
  ]
  if not num_axes:
    return {}
  return {
    'stride': numbers('stride', '1'),
    'lhs_dilate': numbers('lhs_dilate', '1'),
    'rhs_dilate': numbers('rhs_dilate', '1'),
    'pad': numbers('pad', '0_0'),
  }


def _window_products(lhs: int, rhs: int, out: int, axis: dict[str, int]) -> int:
  """Products along one spatial axis that meet a real element and no padding or gap."""
  where = np.arange(out)[:, None] * axis['stride'] + np.arange(rhs)[None] * axis['rhs_dilate']
  where -= axis['pad']
  inside = (where >= 0) & (where <= (lhs - 1) * axis['lhs_dilate'])
  return int((inside & (where % axis['lhs_dilate'] == 0)).sum())

"""Where the time of a step goes: its operations, by the cycles that the compiler estimates."""

from __future__ import annotations

import dataclasses
import re

from instructretro_jax.precompile import counts, hlo, topology

# what JAX and Flax call things, and what is said here
_WORDS = (
  (r'^jit\(\w+\)/', ''),
  (r'while/body/|closed_call/|checkpoint/|\bRetro/|\brun_sequence/|\w+\.(?=\w+[/)])', ''),
  (r'(layer|decoder)_\d+(_to_\d+)?', r'\1'),
  (r'(\w+/)\1', r'\1'),
  (r'^transpose\(jvp\([^)]*\)\)/', 'backward '),
  (r'^jvp\([^)]*\)/', 'forward '),
  (r'^backward (.*)rematted_computation/', r'recomputed \1'),
)


@dataclasses.dataclass
class Operation:
  """All instructions that one line of the model became; those of all layers together.

  Attributes:
    peak_share: of the chip's peak that its matrix products reach; 0 where there are none.
  """

  name: str
  seconds: float = 0.0
  flops: float = 0.0
  peak_share: float = 0.0


def slowest(module: hlo.Module, chip: topology.Chip) -> list[Operation]:
  """Operations by time, the longest first; none where the compiler estimates no cycles.

  Collectives and kernels have no estimate and do not appear.
  """
  found: dict[str, Operation] = {}
  if chip.clock_hz is None:
    return []
  for executed in hlo.walk(module):
    cycles = 0 if executed.is_fused else counts.estimated_cycles(executed.instruction)
    if cycles:
      name = name_of(executed.instruction)
      operation = found.setdefault(name, Operation(name))
      operation.seconds += executed.times * cycles / chip.clock_hz
      operation.flops += executed.times * _flops(module, executed)
  for operation in found.values():
    operation.peak_share = operation.flops / operation.seconds / chip.peak_flops
  return sorted(found.values(), key=lambda operation: -operation.seconds)


def name_of(instruction: hlo.Instruction) -> str:
  """The line of the model that an instruction comes from, without numbers of layers."""
  named = re.search(r'op_name="([^"]*)"', instruction.attributes)
  if not named:
    return f'({re.sub(r"[.0-9]+$", "", instruction.name)})'
  name = named.group(1)
  for pattern, word in _WORDS:
    name = re.sub(pattern, word, name)
  return name


def _flops(module: hlo.Module, executed: hlo.Executed) -> float:
  """Of an instruction's matrix products, those inside a fusion included."""
  instruction = executed.instruction
  if instruction.opcode in ('dot', 'convolution'):
    return counts.matrix_flops(instruction, executed.computation)
  inner = (module.computations[name] for name in instruction.called())
  return sum(
    _flops(module, hlo.Executed(i, computation, 1, True))
    for computation in inner
    for i in computation.values()
  )

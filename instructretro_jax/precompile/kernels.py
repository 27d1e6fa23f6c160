"""FLOPs of attention kernels, which the compiler does not count: stated, or from their shapes."""

from __future__ import annotations

import math
import re

from instructretro_jax.precompile import hlo

# matrix products: forward QK and PV; backward QK again, dP, and one each for dQ, dK and dV
_FORWARD, _ONLY_DQ, _ONLY_DKV, _BACKWARD = 2, 3, 4, 5


def name_of(instruction: hlo.Instruction) -> str | None:
  """Name of a kernel from outside the compiler, of Pallas or cuDNN; None for all else."""
  target = instruction.attribute('custom_call_target')
  if instruction.opcode != 'custom-call' or target is None:
    return None
  if target == '"tpu_custom_call"':
    return re.sub(r'[.\d]+$', '', instruction.name)
  return target.strip('"') if target.startswith('"__cudnn$fmha') else None


def attention_flops(instruction: hlo.Instruction, computation: hlo.Computation) -> float | None:
  """FLOPs of one call of an attention kernel; None for other kernels.

  Some say themselves, as does the one that the TPU compiler makes of attention over short
  sequences. Splash skips blocks of a causal mask, so they are counted by block; cuDNN's by half.
  """
  given = [computation[name].arrays[0] for name in instruction.operands if name in computation]
  wide = [
    array for array in given if len(array.sizes) >= 3 and array.dtype in ('bf16', 'f16', 'f32')
  ]
  name = name_of(instruction)
  if said := re.search(r'"cost_estimate":\{"flops":"(\d+)"', instruction.attributes):
    return float(said.group(1))
  if name.startswith('splash_'):
    query, key = wide[:2]
    share = _visited_share(given)
    products = _splash_products(name, instruction, query)
    if products is None:
      return None
    return 2.0 * products * math.prod(query.sizes) * key.sizes[-2] * share
  if name.startswith('__cudnn$fmha'):
    query, key = wide[:2]  # [B, T, H, A]
    products = _BACKWARD if 'Backward' in name else _FORWARD
    share = 0.5 if 'CAUSAL' in instruction.attributes else 1.0
    return 2.0 * products * math.prod(query.sizes) * key.sizes[1] * share
  return None


def _splash_products(name: str, instruction: hlo.Instruction, query: hlo.Array) -> int | None:
  if '_fwd' in name:
    return _FORWARD
  if '_dq' in name:
    return _ONLY_DQ
  if '_dkv' in name:
    gradients = [a for a in instruction.arrays if a.sizes[-2:] == query.sizes[-2:]]
    return _BACKWARD if len(gradients) > 2 else _ONLY_DKV  # the fused kernel gives dQ as well
  return None


def _visited_share(given: list[hlo.Array]) -> float:
  """Share of the blocks that a causal mask leaves, from its table of blocks [heads, rows, columns].

  Without such a table every block is visited.
  """
  tables = [array.sizes for array in given if array.dtype == 's8' and len(array.sizes) == 3]
  if not tables:
    return 1.0
  _, rows, columns = tables[0]
  return sum(math.ceil((row + 1) * columns / rows) for row in range(rows)) / (rows * columns)

"""Scaled rotary positions of a GGUF file: one factor for all frequencies, or a divisor for each."""

from __future__ import annotations

import numpy as np

from instructretro_jax.model.rotary_scaling import LinearScaling, Llama3Scaling, RotaryScaling

DIVISORS = 'rope_freqs.weight'  # a tensor; llama.cpp writes what Llama 3.1 says there


def scaling(
  kind: str, factor: float, divisors: np.ndarray | None, base: float, original_max_len: int
) -> RotaryScaling | None:
  """How the frequencies are scaled, None if they are not.

  Args:
    kind: 'none', or 'linear', which llama.cpp takes where the file says nothing.
    factor: of the linear kind; 0 for none.
    divisors: of the frequency of each pair of channels, if the file has them.

  Raises ValueError for divisors that are not Llama 3.1's, or beside a factor.
  """
  is_linear = kind == 'linear' and factor not in (0, 1)
  if divisors is None:
    return LinearScaling(factor=float(factor)) if is_linear else None
  if is_linear:
    raise ValueError(f'rope.scaling.factor is {factor} beside {DIVISORS}: only one is supported')
  if (divisors == 1).all():
    return None
  # the slowest pair turns less than once within the first length, and is divided by all of it
  found = Llama3Scaling(factor=float(divisors.max()), original_max_len=original_max_len)
  if not np.allclose(1 / divisors, found.multipliers(base, len(divisors)), rtol=1e-4):
    raise ValueError(
      f'{DIVISORS} is not the scaling of Llama 3.1 (from 4 turns to 1 within {original_max_len} '
      'tokens), the only one that is supported'
    )
  return found

"""Rotary positions for texts longer than those of the first training: frequencies are lowered.

A scaling gives a multiplier for the frequency of each rotated pair of channels, fastest first.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling:
  """Position interpolation (Chen et al. 2023): all frequencies are divided by `factor`."""

  factor: float

  magnitude: ClassVar[float] = 1.0

  def __post_init__(self):
    _require_positive(self.factor)

  def multipliers(self, base: float, num_pairs: int) -> np.ndarray:
    """One for each pair, [num_pairs]; the frequency of pair i is base ** (-i / num_pairs)."""
    return np.full(num_pairs, 1 / self.factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
  """Of Llama 3.1: what turns rarely within the first length is divided by `factor`.

  Pairs with fewer than `low_freq_factor` turns are divided, those with more than
  `high_freq_factor` are kept, and between them the two are mixed.
  """

  factor: float
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_len: int = 8192

  magnitude: ClassVar[float] = 1.0

  def __post_init__(self):
    _require_positive(self.factor)
    if self.high_freq_factor <= self.low_freq_factor:
      raise ValueError(
        f'high_freq_factor {self.high_freq_factor} must be above low_freq_factor '
        f'{self.low_freq_factor}'
      )

  def multipliers(self, base: float, num_pairs: int) -> np.ndarray:
    """As of `LinearScaling`."""
    frequencies = base ** (-np.arange(num_pairs) / num_pairs)
    turns = self.original_max_len * frequencies / (2 * math.pi)
    width = self.high_freq_factor - self.low_freq_factor
    kept = np.clip((turns - self.low_freq_factor) / width, 0, 1)
    return (1 - kept) / self.factor + kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnScaling:
  """YaRN (Peng et al. 2023): as Llama 3.1, mixed over the index of pairs, and scores are raised.

  Attributes:
    beta_fast: pairs that turn more often within `original_max_len` keep their frequency.
    beta_slow: pairs that turn less often have theirs divided by `factor`.
    attention_factor: multiplies what is rotated; the paper's 0.1 ln(factor) + 1 if not given.
    truncate: whether the ends of the mixture are moved out to whole pairs.
  """

  factor: float
  original_max_len: int
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float | None = None
  truncate: bool = True

  def __post_init__(self):
    _require_positive(self.factor)
    if self.beta_fast < self.beta_slow:
      raise ValueError(f'beta_fast {self.beta_fast} must not be below beta_slow {self.beta_slow}')

  @property
  def magnitude(self) -> float:
    """What rotated channels are multiplied with."""
    if self.attention_factor is not None:
      return self.attention_factor
    return paper_attention_factor(self.factor)

  def multipliers(self, base: float, num_pairs: int) -> np.ndarray:
    """As of `LinearScaling`."""

    def pair_with(turns: float) -> float:
      return num_pairs * math.log(self.original_max_len / (turns * 2 * math.pi)) / math.log(base)

    first, last = pair_with(self.beta_fast), pair_with(self.beta_slow)
    if self.truncate:
      first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * num_pairs - 1)  # the bounds of the authors' code
    kept = 1 - np.clip((np.arange(num_pairs) - first) / ((last - first) or 0.001), 0, 1)
    return (1 - kept) / self.factor + kept


RotaryScaling = LinearScaling | Llama3Scaling | YarnScaling


def paper_attention_factor(factor: float, weight: float = 1.0) -> float:
  """By how much YaRN raises what is rotated, at a factor of scaling."""
  return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def _require_positive(factor: float) -> None:
  if factor <= 0:
    raise ValueError(f'the factor of a rotary scaling must be above 0, not {factor}')

"""95 % intervals by resampling questions or sequences: of means, and of paired differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.stats

_RESAMPLES = 2000


def mean_with_interval(scores: Sequence[float], seed: int = 0) -> dict[str, float | int]:
  """Mean in percent and its interval."""
  return _summary([scores], lambda x, axis: x.mean(axis=axis), seed)


def geometric_mean_with_interval(
  scores: Sequence[Sequence[float]], seed: int = 0
) -> dict[str, float | int]:
  """Geometric mean of several metrics' means, in percent; all of the same questions."""

  def geometric(*samples: np.ndarray, axis: int) -> np.ndarray:
    means = np.stack([x.mean(axis=axis) for x in samples])
    return np.prod(means, axis=0) ** (1 / len(means))

  return _summary(scores, geometric, seed)


def difference_with_interval(
  scores: Sequence[float], baseline: Sequence[float], seed: int = 0
) -> dict[str, float | int]:
  """How much higher the mean is than that of a baseline, in percent points, question by question.

  Raises ValueError if the two are not of the same questions.
  """
  if len(scores) != len(baseline):
    raise ValueError(f'{len(scores)} scores cannot be paired with {len(baseline)}')
  return mean_with_interval(np.subtract(scores, baseline), seed)


def perplexity_change_with_interval(
  nats: Sequence[float], baseline: Sequence[float], tokens: Sequence[int], seed: int = 0
) -> dict[str, float | int]:
  """By how many percent a perplexity differs from a baseline's on the same tokens.

  Each argument has one number a sequence, summed over its tokens; sequences are resampled, with
  both systems together. `count` is that of sequences with tokens. Raises ValueError if the three
  are not of the same sequences.
  """
  if not len(nats) == len(baseline) == len(tokens):
    raise ValueError(
      f'{len(nats)} sums of nats cannot be paired with {len(baseline)} over {len(tokens)} sequences'
    )
  has_tokens = np.asarray(tokens) > 0
  differences = np.subtract(nats, baseline)[has_tokens]

  def change(difference: np.ndarray, count: np.ndarray, axis: int) -> np.ndarray:
    return 100 * np.expm1(difference.sum(axis=axis) / count.sum(axis=axis))

  return _summary([differences, np.asarray(tokens)[has_tokens]], change, seed)


def _summary(
  scores: Sequence[Sequence[float]], statistic: Callable[..., Any], seed: int
) -> dict[str, float | int]:
  samples = [100 * np.asarray(s, float) for s in scores]
  value = low = high = float(statistic(*samples, axis=0))
  if len(samples[0]) > 1 and any(s.std() > 0 for s in samples):
    resampled = scipy.stats.bootstrap(
      samples,
      statistic,
      paired=True,
      vectorized=True,
      method='percentile',
      n_resamples=_RESAMPLES,
      rng=np.random.default_rng(seed),
    )
    low, high = map(float, resampled.confidence_interval)
  rounded = {'value': value, 'low': low, 'high': high}
  return {**{name: round(x, 2) for name, x in rounded.items()}, 'count': len(samples[0])}

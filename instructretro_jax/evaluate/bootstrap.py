"""95 % intervals by resampling questions: of a mean, of a geometric mean, of a difference."""

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

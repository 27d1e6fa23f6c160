"""Exact match and token F1 of answers, with SQuAD's normalisation, over all references."""

from __future__ import annotations

import collections
from collections.abc import Sequence
import re
import string

import numpy as np
import scipy.stats

_ARTICLES = re.compile(r'\b(a|an|the)\b')
_PUNCTUATION = str.maketrans('', '', string.punctuation)


def normalize(answer: str) -> str:
  """Lower case, no punctuation, no articles, single spaces (Rajpurkar et al. 2016)."""
  return ' '.join(_ARTICLES.sub(' ', answer.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
  """1 if the prediction equals any reference after normalisation."""
  return float(any(normalize(prediction) == normalize(r) for r in references))


def f1(prediction: str, references: Sequence[str]) -> float:
  """Harmonic mean of token precision and recall against the best reference."""
  return max(_f1_of_one(normalize(prediction).split(), normalize(r).split()) for r in references)


def _f1_of_one(predicted: list[str], reference: list[str]) -> float:
  if not predicted or not reference:
    return float(predicted == reference)
  common = sum((collections.Counter(predicted) & collections.Counter(reference)).values())
  return 2 * common / (len(predicted) + len(reference))


def mean_with_interval(scores: Sequence[float], seed: int = 0) -> dict[str, float | int]:
  """Mean in percent and its 95 % interval by bootstrap over questions."""
  values = 100 * np.asarray(scores, float)
  low = high = float(values.mean())
  if len(values) > 1 and values.std() > 0:
    resampled = scipy.stats.bootstrap(
      (values,), np.mean, method='percentile', n_resamples=2000, rng=np.random.default_rng(seed)
    )
    low, high = map(float, resampled.confidence_interval)
  rounded = {'value': float(values.mean()), 'low': low, 'high': high}
  return {**{name: round(x, 2) for name, x in rounded.items()}, 'count': len(values)}

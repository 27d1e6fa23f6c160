"""Intervals by resampling."""

import numpy as np
import pytest

from instructretro_jax.report.bootstrap import (
  difference_with_interval,
  geometric_mean_with_interval,
  mean_with_interval,
  perplexity_change_with_interval,
)


def test_interval_of_a_mean():
  summary = mean_with_interval([0, 1] * 50)
  assert summary['value'] == 50 and summary['count'] == 100
  assert 38 < summary['low'] < 42 and 58 < summary['high'] < 62
  assert mean_with_interval([1.0, 1.0]) == {'value': 100, 'low': 100, 'high': 100, 'count': 2}


def test_pairs_make_the_interval_of_a_difference_narrow():
  rng = np.random.default_rng(0)
  hard = rng.integers(0, 2, 400).astype(float)
  better = np.where(rng.random(400) < 0.1, 1, hard)  # right on some more of the same questions
  paired = difference_with_interval(better, hard)
  assert paired['low'] > 0 and paired['value'] == pytest.approx(
    100 * (better - hard).mean(), abs=0.01
  )
  assert paired['high'] - paired['low'] < 7 < 2 * 1.96 * 100 * (0.5 / 400) ** 0.5
  with pytest.raises(ValueError, match='400 scores cannot be paired with 3'):
    difference_with_interval(better, hard[:3])


def test_geometric_mean_is_of_the_means():
  summary = geometric_mean_with_interval([[0.2, 0.6], [0.1, 0.1], [0.8, 0.0]])
  assert summary['value'] == pytest.approx(100 * (0.4 * 0.1 * 0.4) ** (1 / 3), abs=0.01)
  assert summary['low'] <= summary['value'] <= summary['high'] and summary['count'] == 2


def test_change_of_perplexity_is_of_all_tokens_and_paired_by_sequence():
  rng = np.random.default_rng(0)
  tokens = rng.integers(50, 100, 64)
  difficulty = rng.normal(4, 1, 64)  # nats a token: a factor of e in perplexity between sequences
  plain = tokens * difficulty
  better = tokens * (difficulty - rng.normal(0.1, 0.05, 64))
  change = perplexity_change_with_interval(better, plain, tokens)
  expected = 100 * (np.exp((better - plain).sum() / tokens.sum()) - 1)
  assert change['value'] == pytest.approx(expected, abs=0.01) and change['count'] == 64
  # the error of the mean of the differences is 0.05 / 8 nats
  assert 2 < change['high'] - change['low'] < 3 and change['high'] < 0
  # a sequence without such tokens says nothing
  longer = perplexity_change_with_interval([*better, 0], [*plain, 0], [*tokens, 0])
  assert longer == change
  with pytest.raises(ValueError, match='64 sums of nats cannot be paired with 3 over 64'):
    perplexity_change_with_interval(better, plain[:3], tokens)

"""Answer metrics."""

import pytest

from instructretro_jax.evaluate.answers import exact_match, f1, mean_with_interval, normalize


def test_normalisation_is_squads():
  assert normalize('The  Quick, brown-fox!') == 'quick brownfox'


def test_any_reference_counts():
  assert exact_match('the Cat', ['dog', 'cat.']) == 1
  assert exact_match('cats', ['dog', 'cat']) == 0
  assert f1('red cat', ['dog', 'cat', 'a big red dog']) == pytest.approx(2 / 3)
  assert f1('', ['x']) == 0 and f1('the', ['a']) == 1


def test_interval():
  summary = mean_with_interval([0, 1] * 50)
  assert summary['value'] == 50 and summary['count'] == 100
  assert 38 < summary['low'] < 42 and 58 < summary['high'] < 62
  assert mean_with_interval([1.0, 1.0]) == {'value': 100, 'low': 100, 'high': 100, 'count': 2}

"""Learning rates by step."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from instructretro_jax.train.optimizer import AdamW

FRACTIONS = st.floats(0, 1)


def rates(num_steps, warmup_of=None, **fields):
  schedule = AdamW(learning_rate=2.0, **fields).schedule(num_steps, warmup_of)
  return np.broadcast_to(schedule(np.arange(num_steps)), num_steps)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
  num_steps=st.integers(1, 40),
  final=FRACTIONS,
  shares=st.tuples(FRACTIONS, FRACTIONS, FRACTIONS),
  kind=st.sampled_from(['cosine', 'wsd']),
)
def test_first_above_zero_last_the_final_one(num_steps, final, shares, kind):
  total = max(sum(shares), 1)
  found = rates(
    num_steps,
    final_lr_fraction=final,
    warmup_fraction=shares[0] / total,
    decay_fraction=min(1, sum(shares) / total),
    cooldown_fraction=shares[1] / total,
    lr_schedule=kind,
  )
  assert found[0] > 0
  if num_steps > 1:
    assert found[-1] == pytest.approx(2 * final, rel=1e-6)
    assert found.max() == pytest.approx(2)
  else:
    assert found[0] == pytest.approx(2 * (final or 1))
  assert (found >= 0).all() and (found <= 2 * (1 + 1e-6)).all()


def test_cosine_between_its_ends():
  found = rates(101, warmup_fraction=0.1, final_lr_fraction=0.1)
  np.testing.assert_allclose(found[:10], 0.2 * np.arange(1, 11), rtol=1e-6)
  along = np.arange(91) / 91
  np.testing.assert_allclose(found[9:100], 0.2 + 0.9 * (1 + np.cos(np.pi * along)), rtol=1e-5)
  assert found[-1] == pytest.approx(0.2, rel=1e-6)


def test_the_decay_may_end_early_and_begin_at_once():
  found = rates(100, warmup_fraction=0.0, decay_fraction=0.5, final_lr_fraction=0.1)
  assert found[0] == 2 and found[48] > 0.2
  np.testing.assert_allclose(found[49:], 0.2, rtol=1e-6)


def test_constant_rates():
  assert set(rates(50, warmup_fraction=0.0, final_lr_fraction=1.0)) == {2.0}


def test_warmup_stable_decay():
  found = rates(100, warmup_fraction=0.05, final_lr_fraction=0.0, lr_schedule='wsd')
  np.testing.assert_allclose(found[:5], 0.4 * np.arange(1, 6), rtol=1e-6)
  np.testing.assert_allclose(found[4:80], 2)
  np.testing.assert_allclose(found[80:], 2 * (1 - np.arange(1, 21) / 20), atol=1e-6)


def test_more_steps_leave_the_warm_up_as_it_was():
  first, longer = (rates(n, 100, final_lr_fraction=1.0) for n in (100, 4000))
  np.testing.assert_array_equal(first, longer[:100])

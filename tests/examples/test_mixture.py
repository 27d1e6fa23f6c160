"""Mixtures: shares of every stretch, epochs of each set, and going on from anywhere."""

import numpy as np
import pytest

from instructretro_jax.examples.mixture import Mixture

RATES = (0.02, 0.02, 0.01, 0.02, 0.02, 0.01, 0.05, 0.817, 0.033)
SIZES = (40, 30, 7, 9, 50, 1, 60, 300, 20)


def loop_draws(shares, count):
  """The draws of a mixture one at a time: always the set whose next draw is due first."""
  drawn, order = [0] * len(shares), []
  for _ in range(count):
    due = [(n + 0.5) / share for n, share in zip(drawn, shares)]
    chosen = due.index(min(due))
    order.append((chosen, drawn[chosen]))
    drawn[chosen] += 1
  return order


@pytest.mark.parametrize('rates', [RATES, (1.0,), (3, 3, 3), (0.5, 1e-3), (2**0.5, 0.3, 1)])
def test_draws_are_those_of_the_loop(rates):
  mixture = Mixture([5] * len(rates), rates)
  expected = loop_draws(mixture.shares, 700)
  found = mixture.draws(np.arange(700))
  assert list(zip(*(x.tolist() for x in found))) == expected
  some = np.array([650, 3, 3, 400])
  assert list(zip(*(x.tolist() for x in mixture.draws(some)))) == [expected[n] for n in some]


@pytest.mark.parametrize('start, length', [(0, 1000), (17, 128), (128_000, 1000), (10**9, 5000)])
def test_shares_hold_over_every_stretch(start, length):
  mixture = Mixture(SIZES, RATES)
  sets, _ = mixture.draws(np.arange(start, start + length))
  counts = np.bincount(sets, minlength=len(RATES))
  expected = length * np.array(RATES) / sum(RATES)
  assert (abs(counts - expected) <= 1 + mixture.shares * len(RATES)).all()


def test_the_published_counts():
  """128,000 draws are those of the table, to the draw, but for one of rounding."""
  counts = np.bincount(Mixture(SIZES, RATES).draws(np.arange(128_000))[0])
  published = [2560, 2560, 1280, 2560, 2560, 1280, 6400, 104_576, 4224]
  assert abs(counts - published).max() <= 1


def test_a_small_set_repeats_in_a_new_order_each_epoch():
  mixture = Mixture((6, 90), (0.5, 0.5))
  ids = mixture.ids(4, np.arange(240))
  small, large = ids[ids < 6], ids[ids >= 6]
  epochs = small.reshape(20, 6)
  assert (np.sort(epochs, axis=1) == np.arange(6)).all()
  assert len({tuple(epoch) for epoch in epochs.tolist()}) > 15
  assert sorted(large[:90].tolist()) == list(range(6, 96))


def test_ids_are_a_function_of_seed_and_position():
  mixture = Mixture(SIZES, RATES)
  whole = mixture.ids(4, np.arange(3000))
  np.testing.assert_array_equal(mixture.ids(4, np.arange(1234, 3000, 7)), whole[1234::7])
  assert (mixture.ids(5, np.arange(3000)) != whole).any()


def test_sets_of_one_size_have_orders_of_their_own():
  ids = Mixture((50, 50), (1, 1)).ids(4, np.arange(100))
  assert (ids[ids < 50] != ids[ids >= 50] - 50).any()


def test_impossible_rates_are_rejected():
  for sizes, rates in (((3,), (0.0,)), ((3, 3), (1.0,)), ((0,), (1.0,)), ((3, 3), (1.0, -1.0))):
    with pytest.raises(ValueError, match=str(rates[-1])):
      Mixture(sizes, rates)

"""Shared runs and copyable tokens against plain loops."""

import numpy as np
import pytest

from instructretro_jax.retrieval.overlap import copyable, longest_common_run, shared_run
from tests.reference import overlap as twin


@pytest.mark.parametrize('C, R', [(5, 9), (8, 8), (1, 3), (7, 16)])
def test_longest_common_run_equals_the_twin(C, R):
  rng = np.random.default_rng(C)
  a, b = rng.integers(0, 3, (40, C)), rng.integers(0, 3, (40, R))
  a_len, b_len = rng.integers(0, C + 1, 40), rng.integers(0, R + 1, 40)
  a_mask, b_mask = np.arange(C) < a_len[:, None], np.arange(R) < b_len[:, None]
  found = longest_common_run(a, b, a_mask, b_mask)
  expected = [twin.longest_common_run(x[:n], y[:m]) for x, n, y, m in zip(a, a_len, b, b_len)]
  assert found.tolist() == expected


def test_shared_run_takes_the_better_neighbour():
  a = np.array([[1, 2, 3, 4]])
  neighbours = np.array([[[9, 9, 9, 9], [0, 2, 3, 4]]])
  mask = np.ones(neighbours.shape, bool)
  assert shared_run(a, np.ones(a.shape, bool), neighbours, mask).tolist() == [3]


def test_copyable_is_a_trigram_in_the_serving_neighbours():
  C = 4
  tokens = np.array([[1, 2, 3, 4, 5, 6, 7, 8]])
  targets = np.array([[2, 3, 4, 5, 6, 7, 8, 9]])
  neighbours = np.zeros((1, 2, 1, 8), int)
  neighbours[0, 0, 0] = [3, 4, 5, 6, 0, 0, 7, 8]  # serves targets from position 3 on
  neighbours[0, 1, 0] = [7, 8, 9, 0, 0, 0, 0, 0]  # serves the last position
  mask = np.ones(neighbours.shape, bool)
  found = copyable(tokens, targets, neighbours, mask)
  assert found[0].tolist() == [False, False, False, True, True, False, False, True]
  mask[0, 0, 0, 3:] = False
  assert copyable(tokens, targets, neighbours, mask)[0, 3:5].tolist() == [True, False]
  assert C * 2 == tokens.shape[1]

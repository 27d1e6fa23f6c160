"""Overlap against slow twins, and on examples worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from instructretro_jax.retrieval import overlap
from tests.reference import overlap as reference

SHAPES = [(1, 1, 1, 3), (7, 5, 2, 9), (3, 16, 3, 32), (600, 4, 1, 7)]  # M, C, K, R


def _texts(seed, M, C, K, R, vocab_size=3):
  """Tokens from a small vocabulary, so that runs are common; a quarter of the masks has holes."""
  rng = np.random.default_rng(seed)
  a, b = rng.integers(0, vocab_size, (M, C)), rng.integers(0, vocab_size, (M, K, R))
  return a, b, rng.random((M, C)) < 0.9, rng.random((M, K, R)) < 0.9


@pytest.mark.parametrize('shape', SHAPES)
def test_longest_common_run_matches_its_twin(shape):
  a, b, mask_a, mask_b = _texts(0, *shape)
  found = overlap.longest_common_run(a, b[:, 0], mask_a, mask_b[:, 0])
  expected = [reference.longest_common_run(*x) for x in zip(a, b[:, 0], mask_a, mask_b[:, 0])]
  np.testing.assert_array_equal(found, expected)


def test_long_runs_do_not_wrap_around():
  same = np.arange(300)[None]
  mask = np.ones((1, 300), bool)
  assert overlap.longest_common_run(same, same, mask, mask)[0] == 300


def test_shared_run_is_that_of_the_better_neighbour_and_never_spans_two():
  a = np.array([[1, 2, 3, 4]])
  neighbours = np.array([[[9, 9, 1, 2], [3, 4, 9, 9]], [[9, 2, 3, 4], [1, 9, 9, 9]]])
  mask = np.ones((2, 4), bool), np.ones((2, 2, 4), bool)
  runs = overlap.shared_run(np.repeat(a, 2, axis=0), mask[0], neighbours, mask[1])
  assert runs.tolist() == [2, 3]


@pytest.mark.parametrize(('N', 'C', 'K', 'R'), [(1, 4, 2, 8), (3, 4, 1, 8), (4, 5, 2, 10)])
def test_copyable_matches_its_twin(N, C, K, R):
  B, L = 3, N * C
  rng = np.random.default_rng(N)
  tokens, neighbours = rng.integers(0, 3, (B, L)), rng.integers(0, 3, (B, N, K, R))
  mask = rng.random((B, N, K, R)) < 0.9
  segments = np.sort(rng.integers(1, 3, (B, N)), axis=1).repeat(C, axis=1)
  segments[:, -1:] = 0  # padding
  found = overlap.copyable(tokens, segments, neighbours, mask, C)
  expected = [reference.copyable(*x, C) for x in zip(tokens, segments, neighbours, mask)]
  np.testing.assert_array_equal(found, expected)
  assert N == 1 or found.any()


def test_copyable_is_served_by_the_neighbours_of_the_chunk_before():
  tokens, segments = np.array([[1, 2, 3, 4, 5, 6]]), np.ones((1, 6), int)
  neighbours = np.zeros((1, 3, 1, 4), int)
  neighbours[0, 0, 0] = [1, 2, 3, 4]  # serves tokens 3 and 4
  mask = np.ones(neighbours.shape, bool)
  found = overlap.copyable(tokens, segments, neighbours, mask, chunk_len=2)
  assert found[0].tolist() == [False, False, True, True, False, False]
  segments[0, 2:] = 2  # another document begins with the chunk that is served
  assert not overlap.copyable(tokens, segments, neighbours, mask, chunk_len=2).any()


def test_copyable_refuses_another_number_of_chunks():
  with pytest.raises(ValueError, match='6 tokens are not 2 chunks of chunk_len=2'):
    overlap.copyable(
      np.zeros((1, 6), int), np.ones((1, 6), int), *(np.ones((1, 2, 1, 4), int),) * 2, 2
    )


@pytest.mark.parametrize('shape', [(1, 6, 1, 5), (9, 11, 2, 7), (530, 4, 3, 4)])
def test_copy_rule_matches_its_twin(shape):
  text, source, text_mask, source_mask = _texts(1, *shape)
  first = shape[1] // 2
  rule = overlap.copy_rule(text, text_mask, source, source_mask, first)
  predicted, spoken, right = reference.copy_rule(text, text_mask, source, source_mask, first)
  assert (rule.covers, rule.right_of_all) == (spoken / predicted, right / predicted)
  assert rule.right_when_it_speaks == (right / spoken if spoken else 0)


def test_copy_rule_takes_the_longest_suffix():
  text = np.array([[1, 2, 3, 7]])
  source = np.array([[[2, 3, 8, 1, 2, 3, 7]]])  # "2 3" is followed by 8, "1 2 3" by 7
  mask = np.ones(text.shape, bool), np.ones(source.shape, bool)
  assert overlap.copy_rule(text, mask[0], source, mask[1], 3) == overlap.CopyRule(1, 1, 1)
  wrong = overlap.copy_rule(text, mask[0], source[:, :, :3], mask[1][:, :, :3], 3)
  assert wrong == overlap.CopyRule(1, 0, 0)
  silent = overlap.copy_rule(text, mask[0], source[:, :, 1:3], mask[1][:, :, 1:3], 3)
  assert silent == overlap.CopyRule(0, 0, 0)  # a suffix of one token is too short

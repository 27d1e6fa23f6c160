"""Exact search, ScaNN, recall."""

import shutil

import numpy as np
import pytest

from instructretro_jax.retrieval.index import ExactIndex, recall_at
from instructretro_jax.retrieval.scann_index import ScannIndex


def clustered(count, width, seed=0):
  rng = np.random.default_rng(seed)
  centres = rng.normal(size=(200, width))
  x = centres[rng.integers(0, 200, count)] + 0.5 * rng.normal(size=(count, width))
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_exact_search_is_brute_force():
  x, q = clustered(300, 8), clustered(7, 8, seed=1)
  ids, scores = ExactIndex(x).search(q, 5)
  order = np.argsort(-(q @ x.T), axis=1, kind='stable')[:, :5]
  np.testing.assert_array_equal(ids, order)
  np.testing.assert_allclose(scores, np.take_along_axis(q @ x.T, order, 1), rtol=1e-6)


def test_ties_go_to_the_lower_id_and_missing_is_minus_one():
  x = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
  ids, scores = ExactIndex(x).search(np.array([[1, 0]], np.float32), 4)
  assert ids.tolist() == [[0, 1, 2, -1]]
  assert np.isneginf(scores[0, 3])


def test_exact_index_survives_saving(tmp_path):
  x = clustered(50, 8)
  ExactIndex(x).save(tmp_path / 'index')
  loaded = ExactIndex.load(tmp_path / 'index')
  np.testing.assert_array_equal(loaded.search(x, 3)[0], ExactIndex(x).search(x, 3)[0])


def test_recall():
  exact = np.array([[1, 2], [3, -1]])
  assert recall_at(2, np.array([[2, 9], [3, 4]]), exact) == pytest.approx(2 / 3)
  assert recall_at(1, np.array([[2, 1], [3, 4]]), exact) == 0.5


def test_scann_recall_and_repeatability(tmp_path):
  x, q = clustered(12_000, 64), clustered(300, 64, seed=1)
  truth, _ = ExactIndex(x).search(q, 2)
  index = ScannIndex.build(x)
  ids, scores = index.search(q, 2)
  assert recall_at(2, ids, truth) >= 0.95
  np.testing.assert_allclose(scores, (q[:, None] * x[ids]).sum(-1), atol=1e-5)
  np.testing.assert_array_equal(ids, ScannIndex.build(x).search(q, 2)[0])  # same again
  index.save(tmp_path / 'index')
  shutil.move(tmp_path / 'index', tmp_path / 'moved')
  np.testing.assert_array_equal(ScannIndex.load(tmp_path / 'moved').search(q, 2)[0], ids)


def test_scann_with_a_partition():
  x, q = clustered(12_000, 64), clustered(300, 64, seed=1)
  truth, _ = ExactIndex(x).search(q, 2)
  assert recall_at(2, ScannIndex.build(x, partition_above=10_000).search(q, 2)[0], truth) >= 0.95

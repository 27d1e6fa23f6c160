"""The exact index against brute force; ties, shards, files."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from instructretro_jax.retrieval import index


def _vectors(seed, num, width=7):
  x = np.random.default_rng(seed).normal(size=(num, width))
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def _brute_force(vectors, queries, k):
  ids = []
  for query in queries:
    scores = [float(np.dot(query.astype(np.float64), vector)) for vector in vectors]
    ids.append(sorted(range(len(vectors)), key=lambda i: (-scores[i], i))[:k])
  return ids


@pytest.mark.parametrize(('M', 'k'), [(1, 1), (40, 1), (97, 13), (31, 31)])
def test_exact_search_is_brute_force(M, k, monkeypatch):
  monkeypatch.setattr(index, '_SCORES_PER_BLOCK', 200)  # several blocks, the last one short
  monkeypatch.setattr(index, '_PAIRS_PER_BLOCK', 5)
  vectors, queries = _vectors(0, M), _vectors(1, 17)
  ids, scores = index.ExactIndex.build(vectors).search(queries, k)
  assert ids.dtype == np.int64 and scores.dtype == np.float32
  np.testing.assert_array_equal(ids, _brute_force(vectors, queries, k))
  expected = np.einsum('qs,qks->qk', queries.astype(np.float64), vectors[ids])
  np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_equal_scores_go_to_the_lower_id():
  # 300 copies of 5 vectors: which copies are kept must not hang on how the sums are blocked
  vectors = np.tile(_vectors(2, 5, width=67), (300, 1))
  ids, _ = index.ExactIndex.build(vectors).search(vectors[:5], 7)
  np.testing.assert_array_equal(ids, np.arange(5)[:, None] + 5 * np.arange(7))


def test_missing_hits_are_minus_one():
  ids, scores = index.ExactIndex.build(_vectors(0, 3)).search(_vectors(1, 2), 5)
  assert (ids[:, 3:] == -1).all() and (ids[:, :3] >= 0).all()
  assert np.isneginf(scores[:, 3:]).all() and np.isfinite(scores[:, :3]).all()
  ids, _ = index.ExactIndex.build(np.zeros((0, 7), np.float32)).search(_vectors(1, 2), 2)
  assert ids.tolist() == [[-1, -1], [-1, -1]]


@pytest.mark.parametrize('num_shards', [2, 5])
def test_shards_give_what_one_index_gives(num_shards):
  vectors = np.tile(_vectors(3, 50, width=33), (4, 1))  # ties across shards
  queries = _vectors(4, 20, width=33)
  ends = np.linspace(0, len(vectors), num_shards + 1).astype(int)
  shards = [
    (int(low), index.ExactIndex.build(vectors[low:high])) for low, high in zip(ends, ends[1:])
  ]
  ids, scores = index.ShardedIndex(shards).search(queries, 60)  # more than one shard of 5 has
  expected_ids, expected_scores = index.ExactIndex.build(vectors).search(queries, 60)
  np.testing.assert_array_equal(ids, expected_ids)
  np.testing.assert_array_equal(scores, expected_scores)


def test_a_saved_index_may_move(tmp_path):
  built = index.ExactIndex.build(_vectors(0, 30))
  built.save(tmp_path / 'a' / 'index')
  shutil.move(tmp_path / 'a', tmp_path / 'b')
  loaded = index.ExactIndex.load(tmp_path / 'b' / 'index')
  for x, y in zip(built.search(_vectors(1, 9), 4), loaded.search(_vectors(1, 9), 4)):
    np.testing.assert_array_equal(x, y)

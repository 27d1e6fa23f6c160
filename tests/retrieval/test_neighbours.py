"""The filter against leakage, the table, and random neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from instructretro_jax.pipeline.array_store import write_shard
from instructretro_jax.retrieval.neighbours import NeighbourTable, drop_own, random_neighbours


def test_hits_of_the_own_document_are_dropped_and_the_rest_moves_up():
  document = np.array([0, 0, 1, 1, 2])
  ids = np.array([[1, 4, 0, 2, -1], [2, 3, -1, -1, -1], [4, 1, -1, -1, -1]])
  scores = np.where(ids >= 0, np.arange(5, 0, -1, dtype=np.float32), -np.inf)
  own = np.array([0, 1, -1])  # the last query is not in the database
  found, kept, dropped = drop_own(ids, scores, document, own, 3)
  assert found.tolist() == [[4, 2, -1], [-1, -1, -1], [4, 1, -1]]
  assert kept[0].tolist() == [4, 2, -np.inf] and kept[2].tolist() == [5, 4, -np.inf]
  assert dropped.tolist() == [2, 2, 0]


def test_missing_hits_are_not_taken_for_the_last_chunk():
  # a missing hit, -1, would index the last document, which is the query's own here
  ids = np.array([[0, -1]])
  _, _, dropped = drop_own(ids, np.zeros((1, 2)), np.array([5, 7]), np.array([7]), 2)
  assert dropped.tolist() == [0]


def test_table_gathers_rows_across_shards(tmp_path):
  ids = np.arange(12).reshape(4, 3).astype(np.int32)
  for shard, rows in enumerate((slice(0, 3), slice(3, 4))):
    write_shard(tmp_path, 'train-neighbours', shard, ids[rows])
    write_shard(tmp_path, 'train-scores', shard, ids[rows].astype(np.float32) / 10)
  table = NeighbourTable(tmp_path, 'train')
  assert (len(table), table.num_saved) == (4, 3)
  found = table.ids(np.array([[3, 0], [0, 2]]), 2)
  assert found.dtype == np.int64
  assert found.tolist() == [[[9, 10], [0, 1]], [[0, 1], [6, 7]]]
  np.testing.assert_allclose(table.scores(np.array([3]), 1), [[0.9]], rtol=1e-6)
  with pytest.raises(ValueError, match='k=4 neighbours asked of a table that holds 3'):
    table.ids(np.array([0]), 4)


def test_random_neighbours_depend_on_seed_and_chunk_alone():
  chunks = np.arange(3000)
  ids = random_neighbours(chunks, 2, 50, seed=1)
  order = np.random.default_rng(0).permutation(3000).reshape(30, 100)
  np.testing.assert_array_equal(random_neighbours(order, 2, 50, seed=1), ids[order])
  np.testing.assert_array_equal(random_neighbours(chunks, 5, 50, seed=1)[:, :2], ids)
  assert (random_neighbours(chunks, 2, 50, seed=2) != ids).mean() > 0.9
  assert (ids[:, 0] != ids[:, 1]).mean() > 0.9


def test_random_neighbours_are_spread_evenly():
  counts = np.bincount(random_neighbours(np.arange(10_000), 2, 50, seed=0).ravel(), minlength=50)
  assert len(counts) == 50
  # 400 expected; a standard deviation is 20
  assert counts.min() > 300 and counts.max() < 500


def test_no_chunk_has_no_random_neighbours():
  assert random_neighbours(np.array([-1]), 3, 50, seed=0).tolist() == [[-1, -1, -1]]

"""A long document does not keep its chunks from having neighbours."""

import numpy as np
import pytest

from instructretro_jax.pipeline.array_store import StoredArray, write_shard
from instructretro_jax.retrieval import others
from instructretro_jax.retrieval.index import ExactIndex
from instructretro_jax.retrieval.scann_index import ScannIndex


@pytest.fixture
def database(tmp_path):
  """600 vectors of which the first 500 are of one document, and near each other."""
  draw = np.random.default_rng(0)
  vectors = draw.normal(size=(600, 16)) * 0.3
  vectors[:500] += 1
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  write_shard(tmp_path, 'x', 0, vectors.astype(np.float32))
  owner_M = np.concatenate([np.zeros(500, int), 1 + np.arange(100) // 5])
  return StoredArray(tmp_path, 'x'), owner_M


@pytest.mark.parametrize('kind', [ExactIndex, ScannIndex])
@pytest.mark.parametrize('rows_per_part', [150, 600])
def test_the_others_are_those_of_a_search_without_the_own(
  database, kind, rows_per_part, monkeypatch
):
  monkeypatch.setattr(others, '_ROWS_PER_PART', rows_per_part)
  monkeypatch.setattr(others, '_HITS_PER_BLOCK', 1000)
  vectors, owner_M = database
  queries = vectors[:]
  ids, scores, dropped = others.search_others(
    kind.build(queries), vectors, queries, owner_M, owner_M, depth=20, k=10
  )
  assert (dropped[:500] == 20).mean() > 0.9  # what the first search found was their own
  products = queries @ queries.T
  products[owner_M[:, None] == owner_M] = -np.inf
  expected = np.sort(products, axis=1)[:, ::-1][:, :10]
  assert (ids >= 0).all() and (owner_M[ids] != owner_M[:, None]).all()
  rows = slice(0, 500) if kind is ScannIndex else slice(None)  # whom ScaNN has not served
  np.testing.assert_allclose(scores[rows], expected[rows], atol=1e-5)


def test_where_there_are_no_others_there_are_none(database):
  vectors, _ = database
  everyone = np.zeros(600, int)
  ids, scores, _ = others.search_others(
    ExactIndex.build(vectors[:]), vectors, vectors[:9], everyone, everyone[:9], depth=20, k=3
  )
  assert (ids == -1).all() and (scores == -np.inf).all()

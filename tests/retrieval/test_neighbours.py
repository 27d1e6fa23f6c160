"""No neighbour from the own document, no continuation across documents, random control."""

import numpy as np

from instructretro_jax.retrieval.neighbours import drop_same_document, random_neighbours


def test_same_document_is_dropped_and_the_rest_moves_up():
  owner = np.array([0, 0, 1, 1, 2])
  ids = np.array([[1, 4, 0, 2, -1], [2, 3, -1, -1, -1]])
  scores = np.array([[5.0, 4, 3, 2, -np.inf], [5, 4, -np.inf, -np.inf, -np.inf]])
  found, kept = drop_same_document(ids, scores, owner, np.array([0, 1]), 3)
  assert found.tolist() == [[4, 2, -1], [-1, -1, -1]]
  assert kept[0].tolist() == [4, 2, -np.inf]


def test_random_neighbours_depend_on_the_chunk_alone():
  chunks = np.arange(1000)
  together = random_neighbours(chunks, 2, 77, seed=3)
  apart = np.concatenate([random_neighbours(chunks[i : i + 1], 2, 77, seed=3) for i in chunks])
  np.testing.assert_array_equal(together, apart)
  assert together.min() == 0 and together.max() == 76
  assert (np.bincount(together.ravel(), minlength=77) > 5).all()
  assert (random_neighbours(chunks, 2, 77, seed=4) != together).mean() > 0.9

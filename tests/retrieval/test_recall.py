"""Recall on tables worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from instructretro_jax.retrieval.recall import recall_at


def test_recall_counts_hits_among_the_first_k_in_any_order():
  exact = np.array([[1, 2, 3], [4, 5, 6]])
  found = np.array([[2, 1, 9], [9, 9, 4]])
  assert recall_at(1, found, exact) == 0
  assert recall_at(2, found, exact) == 2 / 4
  assert recall_at(3, found, exact) == 3 / 6


def test_missing_hits_are_neither_wanted_nor_found():
  assert recall_at(2, np.array([[1, -1]]), np.array([[1, -1]])) == 1
  assert recall_at(2, np.array([[-1, -1]]), np.array([[1, -1]])) == 0
  assert recall_at(1, np.array([[3]]), np.array([[-1]])) == 1


def test_recall_refuses_tables_that_are_too_narrow():
  with pytest.raises(ValueError, match='recall@3'):
    recall_at(3, np.zeros((2, 2)), np.zeros((2, 5)))

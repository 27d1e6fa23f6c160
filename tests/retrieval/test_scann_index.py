"""ScaNN against the exact index, twice the same, and from a folder that has moved."""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
import shutil

import numpy as np
import pytest

from instructretro_jax.retrieval.index import ExactIndex
from instructretro_jax.retrieval.recall import recall_at
from instructretro_jax.retrieval.scann_index import (
  MIN_VECTORS,
  ScannIndex,
  choose_parameters,
)


@functools.cache
def _clusters(num, width):
  rng = np.random.default_rng(0)
  centres = rng.normal(size=(num // 40, width))
  x = centres[rng.integers(0, len(centres), num)] + 0.5 * rng.normal(size=(num, width))
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@functools.cache
def _built():
  return ScannIndex.build(_clusters(12_000, 64))


def _fingerprint(folder):
  ScannIndex.build(_clusters(3_000, 32)).save(folder)
  paths = sorted(folder.iterdir())
  return [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]


def test_recall_on_clustered_vectors():
  vectors = _clusters(12_000, 64)
  queries = vectors[::24] + 0.05 * np.random.default_rng(1).normal(size=(500, 64))
  queries = queries.astype(np.float32)
  found, scores = _built().search(queries, 10)
  exact, exact_scores = ExactIndex.build(vectors).search(queries, 10)
  assert recall_at(2, found, exact) >= 0.95
  same = found == exact
  np.testing.assert_allclose(scores[same], exact_scores[same], atol=1e-5)
  assert (np.diff(scores, axis=1) <= 0).all()


def test_a_saved_index_may_move(tmp_path, monkeypatch):
  queries = _clusters(12_000, 64)[:300]
  _built().save(tmp_path / 'a' / 'index')
  shutil.copytree(tmp_path / 'a', tmp_path / 'b')
  shutil.rmtree(tmp_path / 'a')
  before = _built().search(queries, 5)
  monkeypatch.chdir(tmp_path)
  for folder in (tmp_path / 'b' / 'index', tmp_path.joinpath('b/index').relative_to(tmp_path)):
    for x, y in zip(before, ScannIndex.load(folder).search(queries, 5)):
      np.testing.assert_array_equal(x, y)
  for path in (tmp_path / 'b' / 'index').iterdir():
    assert os.fsencode(tmp_path) not in path.read_bytes()


def test_two_processes_build_the_same_bytes(tmp_path):
  here = _fingerprint(tmp_path / 'here')
  with multiprocessing.get_context('spawn').Pool(1) as pool:
    assert pool.apply(_fingerprint, (tmp_path / 'there',)) == here


@pytest.mark.parametrize('num_vectors', [MIN_VECTORS, 40])
def test_fewer_vectors_than_asked_for(num_vectors):
  vectors = _clusters(3_000, 32)[:num_vectors]
  ids, scores = ScannIndex.build(vectors).search(vectors[:1], 20)
  found = min(num_vectors, 20)
  assert sorted(set(ids[0, :found].tolist())) == sorted(ids[0, :found].tolist())
  assert (ids[0, :found] >= 0).all() and (ids[0, found:] == -1).all()
  assert np.isneginf(scores[0, found:]).all()


def test_building_prints_nothing(capfd):
  ScannIndex.build(_clusters(12_000, 64))
  assert capfd.readouterr().err == ''


def test_too_few_vectors_are_refused():
  with pytest.raises(ValueError, match='15 vectors: ScaNN needs 16; use the exact index'):
    ScannIndex.build(_clusters(3_000, 32)[:15])


def test_more_hits_than_the_leaves_searched_hold_are_missing():
  ids, scores = _built().search(_clusters(12_000, 64)[:2], 11_000)
  found = ids >= 0
  assert (found.sum(axis=1) > 1000).all() and not found[:, -1].any()
  assert all(len(set(row[keep])) == keep.sum() for row, keep in zip(ids, found))
  assert np.isfinite(scores[found]).all()


@pytest.mark.parametrize('num_vectors', [1, 100, 10_000, 10_000_000])
def test_parameters_search_a_part_of_the_leaves_there_are(num_vectors):
  p = choose_parameters(num_vectors)
  assert 1 <= p.num_leaves_to_search <= p.num_leaves <= num_vectors

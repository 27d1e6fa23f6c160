"""The stages on a small run: leaks, resuming, determinism, shards, recall."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil

import numpy as np
import pytest

from instructretro_jax.pipeline import stage
from instructretro_jax.pipeline.array_store import StoredArray
from instructretro_jax.retrieval.embeddings import Embeddings
from instructretro_jax.retrieval.index import ExactIndex
from instructretro_jax.retrieval.index_stage import BuildIndex, open_index
from instructretro_jax.retrieval.minilm import MiniLm
from instructretro_jax.retrieval.neighbours import NeighbourTable
from instructretro_jax.retrieval.neighbours_stage import FindNeighbours
from instructretro_jax.retrieval.word_vectors import WordVectors
from instructretro_jax.text import vocabulary
from instructretro_jax.text.chunks import SPLITS, ChunkStore, chunk_text


def _bytes(folder):
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


def _resumed(stage_, root, *removed):
  """Runs a finished stage again as if it had been killed before it wrote `removed`."""
  folder = root / stage_.name
  (folder / 'manifest.json').unlink()
  for name in removed:
    shutil.rmtree(folder / name)
  stage.run(stage_, root)
  return _bytes(folder)


def test_embeddings_are_those_of_the_texts(run_folder, bert_folder):
  vocab = vocabulary.load(run_folder / 'vocabulary')
  embed = WordVectors(str(bert_folder)).load(run_folder / 'embeddings')
  for split in SPLITS:
    store = ChunkStore(run_folder / 'chunks', split)
    vectors = StoredArray(run_folder / 'embeddings', f'{split}-embeddings')
    assert vectors.shard_lens == store.tokens.shard_lens
    texts = [chunk_text(store, vocab, chunk) for chunk in range(len(store))]
    np.testing.assert_allclose(vectors[:], embed(texts), atol=1e-6)
    empty = np.array([not text.strip() for text in texts])
    assert split == 'heldout' or empty.any()
    np.testing.assert_array_equal(vectors[:].any(axis=1), ~empty)


def test_chunks_without_text_have_no_vector_whatever_the_embedder(run_folder, bert_folder):
  embedder = MiniLm(str(bert_folder), max_tokens=16)  # has a vector even for the empty text
  stage.run(Embeddings(name='bert', embedder=embedder), run_folder)
  for split in SPLITS:
    by_bert, by_words = (
      StoredArray(run_folder / name, f'{split}-embeddings')[:].any(axis=1)
      for name in ('bert', 'embeddings')
    )
    np.testing.assert_array_equal(by_bert, by_words)


def test_embeddings_resume_with_the_same_bytes(run_folder, bert_folder):
  embeddings = Embeddings(embedder=WordVectors(str(bert_folder)))
  before = _bytes(run_folder / 'embeddings')
  kept = run_folder / 'embeddings' / 'train-embeddings-00000.zarr' / 'zarr.json'
  written = kept.stat().st_mtime_ns
  removed = ('train-embeddings-00001.zarr', 'heldout-embeddings-00000.zarr')
  assert _resumed(embeddings, run_folder, *removed) == before
  assert kept.stat().st_mtime_ns == written


def test_neighbours_never_come_from_the_own_document(run_folder):
  stage.run(BuildIndex(), run_folder)
  find = FindNeighbours(num_searched=60, num_saved=20)
  counts = stage.run(find, run_folder).counts
  database = ChunkStore(run_folder / 'chunks', 'train')
  table = NeighbourTable(run_folder / 'neighbours', 'train')
  ids = table.ids(np.arange(len(table)), 20)
  present = ids >= 0
  own = database.document[:, None]
  assert (database.document[ids] != own)[present].all()
  assert (
    present[:, 0].sum()
    == StoredArray(run_folder / 'embeddings', 'train-embeddings')[:].any(1).sum()
  )
  # the continuation is no leak either: give each chunk a token that names its document
  marked = ChunkStore(run_folder / 'chunks', 'train')
  assert len(marked.document) == len(database)  # read before its tokens are replaced
  marked.tokens = np.repeat(1 + database.document[:, None], database.chunk_len, axis=1)
  tokens, mask = marked.neighbour_tokens(ids, pad_id=0)
  assert (tokens != 1 + own[..., None])[mask].all()
  assert mask[..., database.chunk_len :].any()
  assert counts['train']['dropped_own'] > len(table) / 2  # each finds itself
  assert counts['heldout']['dropped_own'] == 0


def test_neighbours_may_be_kept_from_the_own_group(run_folder):
  stage.run(BuildIndex(), run_folder)
  stage.run(FindNeighbours(num_searched=60, num_saved=8), run_folder)
  find = FindNeighbours(name='others', num_searched=60, num_saved=8, drop_own='group')
  counts = stage.run(find, run_folder).counts
  database = ChunkStore(run_folder / 'chunks', 'train')
  assert len(set(database.group)) < database.num_documents
  own_share = {}
  for name in ('neighbours', 'others'):
    ids = NeighbourTable(run_folder / name, 'train').ids(np.arange(len(database)), 8)
    is_own = (database.group[ids] == database.group[:, None])[ids >= 0]
    own_share[name] = is_own.mean()
  assert own_share['neighbours'] > 0 and own_share['others'] == 0
  assert counts['heldout']['dropped_own'] == 0
  with pytest.raises(ValueError, match="'service'"):
    FindNeighbours(drop_own='service')


def test_neighbours_are_the_nearest_of_the_other_documents(run_folder):
  stage.run(BuildIndex(), run_folder)
  database = ChunkStore(run_folder / 'chunks', 'train')
  stage.run(FindNeighbours(num_searched=len(database), num_saved=5), run_folder)
  vectors = StoredArray(run_folder / 'embeddings', 'train-embeddings')[:]
  for split in SPLITS:
    table = NeighbourTable(run_folder / 'neighbours', split)
    queries = StoredArray(run_folder / 'embeddings', f'{split}-embeddings')[:]
    for chunk in np.flatnonzero(queries.any(axis=1)):
      scores = vectors @ queries[chunk]
      if split == 'train':
        scores[database.document == database.document[chunk]] = -np.inf
      best = np.sort(scores)[::-1][:5]
      np.testing.assert_allclose(table.scores([chunk], 5)[0], best, atol=1e-5)
      np.testing.assert_allclose(scores[table.ids([chunk], 5)[0]], best, atol=1e-5)


def test_neighbours_are_repeatable_and_resume(run_folder):
  stage.run(BuildIndex(), run_folder)
  find = FindNeighbours(num_searched=30, num_saved=4)
  stage.run(find, run_folder)
  before = _bytes(run_folder / 'neighbours')
  assert _resumed(find, run_folder, 'train-neighbours-00001.zarr') == before
  stage.run(dataclasses.replace(find, name='again'), run_folder)
  again = _bytes(run_folder / 'again')
  before.pop('manifest.json'), again.pop('manifest.json')  # the manifests differ in the name
  assert again == before


def test_a_continuation_ends_with_its_document(run_folder):
  store = ChunkStore(run_folder / 'chunks', 'train')
  C = store.chunk_len
  last = np.append(store.document[:-1] != store.document[1:], True)
  tokens, mask = store.neighbour_tokens(np.arange(len(store)), pad_id=99)
  assert not mask[last, C:].any() and (tokens[last, C:] == 99).all()
  assert mask[~last, C:].any(axis=1).all()
  inner = np.flatnonzero(~last)
  np.testing.assert_array_equal(mask[inner, C:].sum(axis=1), store.length[inner + 1])
  expected = np.where(mask[inner, C:], store.tokens[inner + 1], 99)
  np.testing.assert_array_equal(tokens[inner, C:], expected)
  _, mask = store.neighbour_tokens(np.array([-1]), pad_id=99)
  assert not mask.any()


def test_statistics_see_copies_and_random_text(run_folder):
  stage.run(BuildIndex(), run_folder)
  counts = stage.run(FindNeighbours(num_searched=60, num_saved=20), run_folder).counts['train']
  found, control = counts['neighbours'], counts['random']
  assert found['run_with_chunk']['mean'] > control['run_with_chunk']['mean']
  assert 0 < counts['share_with_2'] < 1  # chunks without text have none
  assert found['sampled_chunks'] == control['sampled_chunks'] > 0
  assert set(found['copy_rule']) == {'covers', 'right_when_it_speaks', 'right_of_all'}


@pytest.mark.parametrize('shards', [1, 3])
def test_index_in_shards_finds_what_one_exact_index_finds(run_folder, shards):
  counts = stage.run(BuildIndex(shards=shards, recall_queries=10), run_folder).counts
  assert (counts['kind'], counts['recall@2'], counts['measured_on']) == ('exact', 1, 'heldout')
  vectors = StoredArray(run_folder / 'embeddings', 'train-embeddings')[:]
  found = open_index(run_folder / 'index').search(vectors, 12)
  for x, y in zip(found, ExactIndex.build(vectors).search(vectors, 12)):
    np.testing.assert_array_equal(x, y)


def test_recall_is_measured_on_train_chunks_if_too_few_are_held_out(run_folder):
  counts = stage.run(BuildIndex(recall_queries=70), run_folder).counts
  assert (counts['measured_on'], counts['recall_queries']) == ('train', 70)


def test_a_large_database_goes_to_scann(run_folder):
  index = BuildIndex(exact_below=50, shards=2)
  counts = stage.run(index, run_folder).counts
  assert counts['kind'] == 'scann' and counts['recall@2'] > 0.9
  before = _bytes(run_folder / 'index')
  assert _resumed(index, run_folder, '00001') == before

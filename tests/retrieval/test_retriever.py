"""Neighbours of a text from the stages of a run."""

import json
import shutil

import numpy as np
import pytest

from instructretro_jax.pipeline import manifest, stage
from instructretro_jax.retrieval.embeddings import Embeddings
from instructretro_jax.retrieval.index_stage import BuildIndex
from instructretro_jax.retrieval.retriever import RandomRetriever, open_retriever
from instructretro_jax.retrieval.word_vectors import WordVectors
from instructretro_jax.text import vocabulary
from instructretro_jax.text.chunks import ChunkStore, chunk_text


@pytest.fixture
def run(run_folder):
  stage.run(BuildIndex(recall_queries=4), run_folder)
  return run_folder


def test_the_text_of_a_chunk_finds_the_chunk_with_its_continuation(run):
  vocab, store = vocabulary.load(run / 'vocabulary'), ChunkStore(run / 'chunks', 'train')
  retriever = open_retriever(run, vocab)
  chunks = [3, 8, 20]
  found = retriever.find([chunk_text(store, vocab, n) for n in chunks] + [' \n'], 3)
  assert found[3] == []
  for n, neighbours in zip(chunks, found):
    scores = [neighbour.score for neighbour in neighbours]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    np.testing.assert_allclose(scores[0], 1, atol=1e-5)
    best = next(x for x in neighbours if x.chunk_id == n)
    tokens, mask = store.neighbour_tokens(np.array(n), vocab.pad_id)
    assert best.tokens == tokens[mask].tolist() and best.text == vocab.decode(best.tokens)
    assert best.document == store.provenance(int(store.document[n]))['id']


def test_a_model_of_another_vocabulary_reads_the_same_text(run):
  class Bytes:
    vocab_size = 256

    def encode(self, text):
      return list(text.encode())

    def decode(self, ids):
      return bytes(ids).decode(errors='replace')

  vocab, texts = vocabulary.load(run / 'vocabulary'), ['ape bee cat ']
  own, other = (open_retriever(run, v).find(texts, 2)[0] for v in (vocab, Bytes()))
  assert [n.text for n in own] == [n.text for n in other]
  assert [bytes(n.tokens).decode() for n in other] == [n.text for n in own]


def test_random_neighbours_are_decided_by_the_text_alone(run):
  vocab = vocabulary.load(run / 'vocabulary')
  retriever = open_retriever(run, vocab)
  control = RandomRetriever(retriever)
  texts = ['ape bee ', 'cat ', ' \n']
  found = control.find(texts, 3)
  assert found == RandomRetriever(retriever).find(texts[::-1], 3)[::-1] and found[2] == []
  ids = [[neighbour.chunk_id for neighbour in of_text] for of_text in found[:2]]
  assert all(len(set(of_text)) == 3 for of_text in ids) and ids[0] != ids[1]
  assert all(set(of_text) <= set(range(retriever.num_chunks)) for of_text in ids)
  (best, *_) = retriever.find([found[0][0].text[:20]], 1)[0]
  same = retriever.neighbour(best.chunk_id)
  assert (same.text, same.tokens, same.score) == (best.text, best.tokens, None)


def test_what_is_missing_is_named(run):
  vocab = vocabulary.load(run / 'vocabulary')
  with pytest.raises(manifest.StageError, match='none holds no finished stage'):
    open_retriever(run, vocab, index='none')
  path = run / 'embeddings' / manifest.MANIFEST
  content = json.loads(path.read_text())
  content['plan']['arguments']['embedder']['class'] = 'Mine'
  path.write_text(json.dumps(content))
  with pytest.raises(manifest.StageError, match='the embedder Mine is none of'):
    open_retriever(run, vocab)


def test_an_embedder_that_changed_since_is_refused(run, bert_folder, tmp_path):
  mine = shutil.copytree(bert_folder, tmp_path / 'bert')
  embeddings = Embeddings(name='of_mine', embedder=WordVectors(str(mine)))
  stage.run(embeddings, run)
  stage.run(BuildIndex(name='index_of_mine', embeddings='of_mine', recall_queries=4), run)
  vocab = vocabulary.load(run / 'vocabulary')
  open_retriever(run, vocab, 'index_of_mine')
  config = json.loads((mine / 'config.json').read_text())
  (mine / 'config.json').write_text(json.dumps(config | {'layer_norm_eps': 1e-6}))
  with pytest.raises(manifest.StageError, match='file .*config.json has changed since .*of_mine'):
    open_retriever(run, vocab, 'index_of_mine')
  with pytest.raises(manifest.StageError, match='another configuration'):
    stage.is_up_to_date(embeddings, run)

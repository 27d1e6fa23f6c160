"""Word vectors against a sum written with loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import safetensors.numpy

from instructretro_jax.pipeline import manifest
from instructretro_jax.retrieval import word_vectors
from instructretro_jax.retrieval.word_vectors import WordVectors

DATABASE = ['ape bee', 'ape cat cat', 'ape', '', 'bee bee eel fox']


def _slow(bert_folder, texts):
  tensors = safetensors.numpy.load_file(bert_folder / 'model.safetensors')
  table = tensors['embeddings.word_embeddings.weight'].astype(np.float64)
  names = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', 'ape', 'bee', 'cat', 'dog', 'eel', 'fox']
  vectors = []
  for text in texts:
    total = np.zeros(16)
    for word in sorted(set(text.split())):
      having = sum(word in other.split() for other in DATABASE)
      idf = math.log((1 + len(DATABASE)) / (1 + having))
      total += idf * (table[names.index(word)] - table.mean(axis=0))
    vectors.append(total / np.linalg.norm(total) if text else total)
  return np.array(vectors)


def test_matches_its_twin(bert_folder, tmp_path, monkeypatch):
  monkeypatch.setattr(word_vectors, '_TEXTS_PER_BLOCK', 2)
  embedder = WordVectors(str(bert_folder))
  embedder.fit(iter(DATABASE), tmp_path)
  texts = ['', *DATABASE, 'dog ape dog', 'eel ' * 40 + 'cat']  # longer than the tokenizer's 5
  vectors = embedder.load(tmp_path)(texts)
  assert vectors.dtype == np.float32
  np.testing.assert_allclose(vectors, _slow(bert_folder, texts), atol=1e-6)
  assert embedder.load(tmp_path)([]).shape == (0, 16)


def test_a_fit_that_is_there_is_kept(bert_folder, tmp_path):
  embedder = WordVectors(str(bert_folder))
  embedder.fit(DATABASE, tmp_path)
  before = (tmp_path / word_vectors.IDF_FILE).read_bytes()
  embedder.fit(['owl'], tmp_path)
  assert (tmp_path / word_vectors.IDF_FILE).read_bytes() == before


def test_an_empty_database_is_refused(bert_folder, tmp_path):
  with pytest.raises(manifest.StageError, match='no chunk'):
    WordVectors(str(bert_folder)).fit([], tmp_path)

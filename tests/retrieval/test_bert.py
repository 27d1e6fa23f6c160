"""BERT in Flax against published numbers, and the word vectors."""

import json
from pathlib import Path

import numpy as np
import pytest

from instructretro_jax.retrieval.bert import MeanPooledBert
from instructretro_jax.retrieval.word_vectors import WordVectors

GOLDEN = Path(__file__).parent.parent / 'golden' / 'minilm.json'


@pytest.mark.packages
def test_equals_the_published_model(tmp_path):
  golden = json.loads(GOLDEN.read_text())
  vectors = MeanPooledBert().load(tmp_path)(golden['texts'])
  expected = np.array(golden['first_8'])
  np.testing.assert_allclose(vectors[:, :8], expected, atol=1e-5)
  np.testing.assert_allclose(vectors @ vectors.T, np.array(golden['similarities']), atol=1e-5)


@pytest.mark.packages
def test_batching_does_not_matter(tmp_path):
  texts = ['one', 'two words', 'three ' * 40, 'four ' * 90]
  alone = np.concatenate([MeanPooledBert(batch_size=1).load(tmp_path)([t]) for t in texts])
  together = MeanPooledBert(batch_size=3).load(tmp_path)(texts)
  np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.packages
def test_word_vectors_weigh_rare_words(tmp_path):
  texts = ['the red tower', 'the green bridge', 'the blue tower', 'the', '']
  embedder = WordVectors()
  embedder.fit(texts, tmp_path)
  vectors = embedder.load(tmp_path)(texts)
  np.testing.assert_allclose(np.linalg.norm(vectors[:3], axis=1), 1, rtol=1e-5)
  assert vectors[0] @ vectors[2] > vectors[0] @ vectors[1] + 0.1
  np.testing.assert_array_equal(vectors[4], 0)

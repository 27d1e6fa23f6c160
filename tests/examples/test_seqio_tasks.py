"""seqio as the data of an arm, and our examples as seqio iterates them."""

from pathlib import Path

import numpy as np
import pytest
import seqio
import tensorflow as tf

from instructretro_jax.examples import seqio_tasks
from instructretro_jax.examples.instructions import Instructions
from instructretro_jax.examples.seqio_tasks import SeqioData, SeqioVocabulary
from instructretro_jax.pipeline import manifest
from instructretro_jax.questions.passage import untitled
from instructretro_jax.questions.questions import Question
from instructretro_jax.text import vocabulary
from tests.text.byte_vocabulary import ByteVocabulary

VOCAB = ByteVocabulary()
TEXTS = [f'{"abcdefg"[n % 7] * (n % 5 + 1)} {n}' for n in range(40)]


@pytest.fixture
def registered():
  """Names that are taken out of the registries behind the test."""
  yield
  for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
    for name in [n for n in registry.names() if n.startswith('test_')]:
      registry.remove(name)


@pytest.fixture(autouse=True)
def bytes_as_vocabulary(monkeypatch):
  monkeypatch.setattr(vocabulary, 'load', lambda folder: VOCAB)


def add_text_task(name, *, with_inputs=False, vocab=VOCAB):
  def dataset(split, shuffle_files, seed=None):
    rows = [{'inputs': f'say {n}', 'targets': text} for n, text in enumerate(TEXTS)]
    names = ('inputs', 'targets') if with_inputs else ('targets',)
    return tf.data.Dataset.from_tensor_slices({n: [row[n] for row in rows] for n in names})

  feature = seqio.Feature(SeqioVocabulary(vocab), add_eos=True)
  return seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(dataset, splits=('train',)),
    preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
    output_features={n: feature for n in (('inputs', 'targets') if with_inputs else ('targets',))},
  )


def rows(data, positions, seed=0):
  source = data.source(Path('run'), 'train')
  return source.examples(source.ids(seed, np.asarray(positions)))


def texts_of(batch, which='tokens'):
  found = []
  for tokens, segments in zip(batch[which], batch['segments']):
    found += [VOCAB.decode(tokens[segments == s]) for s in range(1, segments.max() + 1)]
  return found


def test_targets_are_packed_into_rows_that_predict_the_next_token(registered):
  add_text_task('test_text')
  batch = rows(SeqioData(mixture_or_task='test_text', seq_len=32), range(8))
  assert batch['tokens'].shape == (8, 32) and batch['segments'].max() > 1
  assert set(texts_of(batch)) <= set(TEXTS)
  for tokens, targets, mask, segments in zip(*(batch[n] for n in seqio_tasks._OURS)):
    for place in np.flatnonzero(mask):
      assert targets[place] == tokens[place + 1] and segments[place] == segments[place + 1]
    ends = np.flatnonzero((segments > 0) & (mask == 0))
    assert (tokens[ends] == VOCAB.eos_id).all()


def test_the_loss_is_on_targets_where_there_are_inputs(registered):
  add_text_task('test_pairs', with_inputs=True)
  data = SeqioData(mixture_or_task='test_pairs', seq_len=32, inputs_len=16)
  batch = rows(data, range(4))
  for targets, mask, segments in zip(batch['targets'], batch['loss_mask'], batch['segments']):
    for segment in range(1, segments.max() + 1):
      assert VOCAB.decode(targets[(mask > 0) & (segments == segment)]) in TEXTS
  with pytest.raises(manifest.StageError, match='give inputs_len'):
    rows(SeqioData(mixture_or_task='test_pairs', seq_len=32), [0])


def test_the_order_is_of_seed_and_position(registered):
  add_text_task('test_text')
  data = SeqioData(mixture_or_task='test_text', seq_len=16)
  whole, again = rows(data, range(60), seed=1), rows(data, range(60), seed=1)
  np.testing.assert_array_equal(whole['tokens'], again['tokens'])
  np.testing.assert_array_equal(
    rows(data, [41, 42, 50], seed=1)['tokens'], whole['tokens'][[41, 42, 50]]
  )
  np.testing.assert_array_equal(rows(data, [5, 2], seed=1)['tokens'], whole['tokens'][[5, 2]])
  assert (rows(data, range(60), seed=2)['tokens'] != whole['tokens']).any()


def test_a_mixture_by_name(registered):
  add_text_task('test_a')
  add_text_task('test_b')
  seqio.MixtureRegistry.add('test_mixture', [('test_a', 1), ('test_b', 2)])
  data = SeqioData(mixture_or_task='test_mixture', seq_len=32)
  assert set(texts_of(rows(data, range(20)))) <= set(TEXTS)


def test_what_cannot_be_read_is_refused(registered):
  class Shifted(ByteVocabulary):
    def _decode(self, ids, continues):
      return super()._decode([i - 1 for i in ids], continues)

  add_text_task('test_other', vocab=Shifted())
  with pytest.raises(manifest.StageError, match='another vocabulary'):
    rows(SeqioData(mixture_or_task='test_other', seq_len=32), [0])
  with pytest.raises(manifest.StageError, match='knows no task or mixture .*SeqioData.module'):
    rows(SeqioData(mixture_or_task='test_nowhere', seq_len=32), [0])


def test_instructions_are_iterated_by_seqio_and_come_back_the_same(registered):
  questions = [
    Question(f'q{n}', f'Why {n}?', untitled('P'), ('so',), 'own', 'given', system='')
    for n in range(9)
  ]
  source = Instructions(questions, VOCAB, 64, is_packed=True)
  task = seqio_tasks.register('test_ours', source, VOCAB, data_seed=3, num_examples=12)
  expected = source.examples(source.ids(3, np.arange(12)))
  found = list(task.get_dataset(None, split='train', shuffle=False).as_numpy_iterator())
  for name, array in expected.items():
    np.testing.assert_array_equal([row[name] for row in found], array)
    assert found[0][name].dtype == array.dtype
  batch = rows(SeqioData(mixture_or_task='test_ours', seq_len=64), range(12))
  whole = lambda batch: [tuple(x[n].tobytes() for x in batch.values()) for n in range(12)]
  in_our_order = {name: batch[name] for name in expected}
  assert set(whole(in_our_order)) <= set(whole(expected))

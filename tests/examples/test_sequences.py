"""Order of examples, sequences and their neighbours, instruction rows."""

import numpy as np
import pytest

from instructretro_jax.examples.sequences import Sequences, example_ids
from instructretro_jax.examples.tasks import LanguageModel
from instructretro_jax.pipeline.manifest import StageError
from tests.retrieval.fixtures import CHUNK_LEN

C = 4


class Store:
  """Three documents of 2, 1 and 3 chunks."""

  chunk_len = C
  length = np.array([4, 2, 3, 4, 4, 1])
  document = np.array([0, 0, 1, 2, 2, 2])
  tokens = np.arange(1, 25).reshape(6, 4) * (np.arange(4) < length[:, None])

  def __len__(self):
    return 6

  def documents(self, chunks):
    return self.document[chunks]

  def neighbour_tokens(self, ids, pad_id):
    return np.where(ids[..., None] >= 0, ids[..., None], pad_id), ids[..., None] >= 0


class Table:
  def ids(self, chunks, k):
    return np.stack([chunks + 100, np.full_like(chunks, -1)], axis=-1)[..., :k]


def test_order_is_a_function_of_seed_and_position():
  whole = example_ids(5, 10, np.arange(40))
  assert [sorted(whole[i : i + 10]) for i in range(0, 40, 10)] == [list(range(10))] * 4
  np.testing.assert_array_equal(example_ids(5, 10, np.arange(17, 23)), whole[17:23])
  assert (whole[:10] != whole[10:20]).any()
  assert (example_ids(6, 10, np.arange(40)) != whole).any()


def test_targets_stay_inside_documents():
  batch = Sequences(Store(), 2 * C, 0).examples(np.array([0, 1, 2]))
  assert batch['tokens'][0].tolist() == [1, 2, 3, 4, 5, 6, 0, 0]
  assert batch['targets'][0].tolist() == [2, 3, 4, 5, 6, 0, 0, 0]
  assert batch['loss_mask'][0].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
  assert batch['segments'][1].tolist() == [1, 1, 1, 0, 2, 2, 2, 2]
  # the last target of a sequence is the first token of the next chunk of the document
  assert batch['targets'][1, -1] == 17 and batch['loss_mask'][1, -1] == 1
  assert batch['targets'][2, 3] == 21 and batch['loss_mask'][2].sum() == 4


def test_a_short_end_is_padded():
  source = Sequences(Store(), 4 * C, 0, Store(), Table())
  assert len(source) == 2
  batch = source.examples(np.array([1]))
  assert batch['chunk_ids'][0].tolist() == [4, 5, -1, -1]
  assert (batch['segments'][0, 5:] == 0).all() and batch['loss_mask'][0, 5:].sum() == 0
  assert batch['neighbours'][0, :, 0, 0].tolist() == [104, 105, 0, 0]
  assert not batch['neighbour_mask'][0, 2:].any()


def test_sequence_length_must_be_whole_chunks():
  with pytest.raises(ValueError, match='10 is no multiple of the chunk length 4'):
    Sequences(Store(), 10, 0)


def test_text_of_less_than_a_sequence_is_refused(built_run_folder):
  of = lambda seq_len: LanguageModel(seq_len=seq_len).source(built_run_folder, 'train')
  whole = len(of(CHUNK_LEN)) * CHUNK_LEN
  assert len(of(whole)) == 1
  with pytest.raises(StageError, match=f'too few for one sequence of {whole + CHUNK_LEN}'):
    of(whole + CHUNK_LEN)

"""Batches of a stream: the order, wherever a process begins and whatever rows it reads."""

import threading

import numpy as np
import pytest

from instructretro_jax.examples.sequences import example_ids
from instructretro_jax.examples.stream import batches
from instructretro_jax.pipeline import manifest


class Numbers:
  """Examples that are their own number; remembers how many were read at once."""

  def __init__(self, count):
    self._count, self.read = count, []

  def __len__(self):
    return self._count

  def ids(self, seed, positions):
    return example_ids(seed, self._count, positions)

  def examples(self, ids):
    self.read.append(len(ids))
    tokens = np.repeat(np.asarray(ids, np.int32)[:, None], 3, axis=1)
    return {'tokens': tokens, 'square': np.asarray(ids, np.float32) ** 2}


def drawn(source, start, stop, batch_size, rows=None):
  return list(batches(source, seed=3, start=start, stop=stop, batch_size=batch_size, rows=rows))


@pytest.mark.parametrize('batch_size', [1, 5, 16, 20])
def test_batches_are_the_stream_cut_up(batch_size):
  stop = 4 * batch_size
  expected = example_ids(3, 7, np.arange(stop)).reshape(4, batch_size)
  found = drawn(Numbers(7), 0, stop, batch_size)
  np.testing.assert_array_equal([b['tokens'][:, 0] for b in found], expected)
  np.testing.assert_array_equal([b['square'] for b in found], expected.astype(np.float32) ** 2)
  assert found[0]['tokens'].dtype == np.int32 and found[0]['tokens'].shape == (batch_size, 3)


def test_a_stream_that_begins_later_goes_on_the_same():
  whole = drawn(Numbers(50), 0, 120, 6)
  later = drawn(Numbers(50), 78, 120, 6)
  assert len(later) == 7
  for a, b in zip(whole[13:], later, strict=True):
    np.testing.assert_array_equal(a['tokens'], b['tokens'])


def test_processes_read_their_rows_of_the_same_batches():
  whole = [b['tokens'] for b in drawn(Numbers(50), 12, 84, 6)]
  for rows in ([0, 1, 2], [3, 4, 5], [0, 5], [4]):
    source = Numbers(50)
    part = drawn(source, 12, 84, 6, np.array(rows))
    np.testing.assert_array_equal([b['tokens'] for b in part], [b[rows] for b in whole])
    # no more than its own, many at once
    assert sum(source.read) == 12 * len(rows) and max(source.read) > len(rows)


def test_reading_ahead_is_bounded_and_ends_with_the_reader():
  source = Numbers(1000)
  stream = batches(source, seed=3, start=0, stop=1000, batch_size=4)
  next(stream)
  stream.close()
  assert sum(source.read) <= 16 * 4
  assert not [t for t in threading.enumerate() if t.name.startswith('examples')]


def test_an_error_of_the_source_reaches_the_reader():
  class Broken(Numbers):
    def examples(self, ids):
      if len(self.read) == 2:
        raise manifest.StageError('the disk is gone')
      return super().examples(ids)

  with pytest.raises(manifest.StageError, match='the disk is gone'):
    drawn(Broken(1000), 0, 1000, 4)


def test_nothing_to_train_on_is_an_error():
  with pytest.raises(manifest.StageError, match='no example'):
    drawn(Numbers(0), 0, 4, 2)

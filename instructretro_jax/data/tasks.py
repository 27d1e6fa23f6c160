"""Tasks: what an arm is trained on, as seqio tasks over index-addressed sources."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
from pathlib import Path
from typing import Protocol

import numpy as np
import seqio
import tensorflow as tf

from instructretro_jax import manifest
from instructretro_jax.data import vocabulary
from instructretro_jax.data.batches import ExampleSource, NeighbourIds, Sequences, example_ids
from instructretro_jax.data.chunks import ChunkStore
from instructretro_jax.data.instructions import Instructions
from instructretro_jax.data.questions import read_questions


class OpenTable(Protocol):
  """Opens the neighbour table of a split; given by the retrieval side."""

  def __call__(self, folder: Path, split: str) -> NeighbourIds: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModel:
  """Next-token prediction on the chunk store, with neighbours if a table is named."""

  chunks: str = 'chunks'
  vocabulary: str = 'vocabulary'
  neighbours: str | None = None
  seq_len: int  # L, tokens
  num_neighbours: int = 2  # K

  def reads(self) -> tuple[str, ...]:
    return (self.chunks, self.vocabulary, *([self.neighbours] if self.neighbours else []))

  def source(self, root: Path, split: str, open_table: OpenTable) -> Sequences:
    """The examples of one split."""
    folder = root / self.chunks
    table = open_table(root / self.neighbours, split) if self.neighbours else None
    return Sequences(
      ChunkStore(folder, split),
      self.seq_len,
      vocabulary.load(root / self.vocabulary).pad_id,
      ChunkStore(folder, 'train'),
      table,
      self.num_neighbours,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstructionTuning:
  """Answers to questions with their passages in the prompt."""

  questions: str = 'questions'
  vocabulary: str = 'vocabulary'
  seq_len: int  # L, tokens of prompt and answer

  def reads(self) -> tuple[str, ...]:
    return (self.questions, self.vocabulary)

  def source(self, root: Path, split: str, open_table: OpenTable) -> Instructions:
    """The examples of one split."""
    vocab = vocabulary.load(root / self.vocabulary)
    return Instructions(read_questions(root / self.questions, split), vocab, self.seq_len)


Task = LanguageModel | InstructionTuning


class IndexedSource(seqio.DataSource):
  """A seqio source whose example at a position is a function of seed and position."""

  def __init__(self, source: ExampleSource, seed: int, start: int, stop: int):
    if not len(source):
      raise manifest.StageError('there is no example to train on')
    self._source, self._seed, self._start, self._stop = source, seed, start, stop
    first = source.examples(np.zeros(1, np.int64))
    self.signature = {
      name: tf.TensorSpec(array.shape[1:], array.dtype) for name, array in first.items()
    }
    super().__init__(splits=('train',), num_input_examples={'train': stop - start})

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return False

  def list_shards(self, split: str) -> list[str]:
    return [split]

  def get_dataset(
    self,
    split: str = 'train',
    shuffle: bool = False,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    *,
    sequence_length=None,
    use_cached: bool = False,
    num_epochs: int | None = 1,
  ) -> tf.data.Dataset:
    """All examples from `start` to `stop` in order; the source itself has shuffled them."""
    names = list(self.signature)

    def read(position: int) -> list[np.ndarray]:
      ids = example_ids(self._seed, len(self._source), int(position), int(position) + 1)
      example = self._source.examples(ids)
      return [example[name][0] for name in names]

    def fetch(position: tf.Tensor) -> dict[str, tf.Tensor]:
      arrays = tf.numpy_function(read, [position], [self.signature[n].dtype for n in names])
      return {n: tf.ensure_shape(a, self.signature[n].shape) for n, a in zip(names, arrays)}

    positions = tf.data.Dataset.range(self._start, self._stop)
    return positions.map(fetch, num_parallel_calls=2, deterministic=True)


def batches(
  source: ExampleSource,
  vocab: vocabulary.Vocabulary,
  *,
  seed: int,
  batch_size: int,
  start: int,
  stop: int,
) -> Iterator[dict[str, np.ndarray]]:
  """Batches of the examples at positions start .. stop of the stream, through a seqio task."""
  indexed = IndexedSource(source, seed, start, stop)
  features = {
    name: seqio.Feature(vocab, add_eos=False, rank=len(spec.shape), dtype=spec.dtype)
    for name, spec in indexed.signature.items()
  }
  task = seqio.Task('training_examples', indexed, output_features=features, preprocessors=[])
  dataset = task.get_dataset(sequence_length=None, split='train', shuffle=False)
  yield from dataset.batch(batch_size, drop_remainder=True).prefetch(2).as_numpy_iterator()

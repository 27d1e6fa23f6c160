"""Tasks: what an arm is trained on, as seqio tasks over index-addressed sources."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
from pathlib import Path
from typing import Protocol

import numpy as np
import seqio
import tensorflow as tf

from instructretro_jax.examples.cached import SPLIT, CachedExamples
from instructretro_jax.examples.instructions import Instructions
from instructretro_jax.examples.mixture import Mixture
from instructretro_jax.examples.sequences import ExampleSource, NeighbourIds, Sequences
from instructretro_jax.pipeline import manifest
from instructretro_jax.questions.passage_windows import PassageNeighbours, read_passages
from instructretro_jax.questions.questions import read_questions
from instructretro_jax.text import vocabulary
from instructretro_jax.text.chunks import ChunkStore


class OpenTable(Protocol):
  """Opens the neighbour table of a split; given by the retrieval side."""

  def __call__(self, folder: Path, split: str) -> NeighbourIds: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModel:
  """Next-token prediction on the chunk store, with neighbours if a table is named.

  Attributes:
    cache: the stage (`retrieval.cache.Cache`) that wrote the examples of the training split as
      sequential files; they are read from there. None: they are joined as they are read.
  """

  chunks: str = 'chunks'
  vocabulary: str = 'vocabulary'
  neighbours: str | None = None
  seq_len: int  # L, tokens
  num_neighbours: int = 2  # K
  cache: str | None = None

  def reads(self) -> tuple[str, ...]:
    if self.cache:
      return (self.cache, self.vocabulary)
    return (self.chunks, self.vocabulary, *([self.neighbours] if self.neighbours else []))

  def source(self, root: Path, split: str, open_table: OpenTable) -> Sequences | CachedExamples:
    """The examples of one split. Raises StageError if those in the cache are of another task."""
    if self.cache:
      return self._cached(root / self.cache, split)
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

  def _cached(self, folder: Path, split: str) -> CachedExamples:
    if split != SPLIT:
      raise manifest.StageError(f'{folder} holds the split {SPLIT}, not {split}: unset cache')
    written = manifest.read_manifest(folder).plan.arguments
    own = manifest.to_json(dataclasses.replace(self, cache=None))
    if wrong := [name for name in own if own[name] != written['task'][name]]:
      raise manifest.StageError(
        f'{folder} holds examples with other values of {wrong}: '
        'give cache.Cache and the arm the same task'
      )
    return CachedExamples(folder, written['data_seed'])


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstructionTuning:
  """Answers to questions with their passages in the prompt.

  Attributes:
    is_packed: a row holds as many dialogues as it has room for, and none sees another.
    rates: share of each task among the dialogues, as pairs of task and rate; those that are not
      named are left out. None: all questions, each once an epoch.
    neighbours: the stage whose passages the encoder reads, where the gate of the arm is open;
      None: the windows of the question's own.
  """

  questions: str = 'questions'
  vocabulary: str = 'vocabulary'
  seq_len: int  # L, tokens of prompt and answer
  is_packed: bool = False
  rates: tuple[tuple[str, float], ...] | None = None
  neighbours: str | None = None
  num_neighbours: int = 2  # K

  def __post_init__(self):
    if self.rates is not None:
      Mixture([1] * len(self.rates), [rate for _, rate in self.rates])

  def reads(self) -> tuple[str, ...]:
    stages = (self.questions, self.vocabulary)
    return stages if self.neighbours is None else (*stages, self.neighbours)

  def source(self, root: Path, split: str, chunk_len: int | None = None) -> Instructions:
    """The examples of one split.

    Args:
      chunk_len: of the model, if it reads neighbours; they come with the examples then.
    """
    vocab, neighbours = vocabulary.load(root / self.vocabulary), None
    if chunk_len is not None:
      retrieved = read_passages(root / self.neighbours, split) if self.neighbours else None
      neighbours = PassageNeighbours(vocab, chunk_len, self.num_neighbours, retrieved)
    return Instructions(
      read_questions(root / self.questions, split),
      *(vocab, self.seq_len),
      neighbours=neighbours,
      is_packed=self.is_packed,
      rates=self.rates,
    )


Task = LanguageModel | InstructionTuning

_BLOCK = 16  # examples that are read at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Positions:
  """Places in the stream of examples that a process reads: some rows of each of several batches.

  `positions[n]` is the place of the n-th example, n an array of numbers below `len(positions)`.
  """

  start: int  # place of the first batch's first row
  batch_size: int
  num_batches: int
  rows: np.ndarray  # of a batch, in order

  def __len__(self) -> int:
    return self.num_batches * len(self.rows)

  def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
    batches, places = np.divmod(numbers, len(self.rows))
    return self.start + batches * self.batch_size + self.rows[places]


class IndexedSource(seqio.DataSource):
  """A seqio source whose example at a position is a function of seed and position."""

  def __init__(self, source: ExampleSource, seed: int, positions: Positions):
    if not len(source):
      raise manifest.StageError('there is no example to train on')
    self._source, self._seed, self._positions = source, seed, positions
    first = source.examples(np.zeros(1, np.int64))
    self.signature = {
      name: tf.TensorSpec(array.shape[1:], array.dtype) for name, array in first.items()
    }
    # seqio would keep sources that say they are small in memory, and each is read once
    super().__init__(splits=('train',), num_input_examples=None)

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
    """All examples in order; the source itself has shuffled them.

    They are read a block at a time, two blocks at once, in threads of TensorFlow.
    """
    names = list(self.signature)

    def read(first: int) -> list[np.ndarray]:
      numbers = np.arange(first, min(first + _BLOCK, len(self._positions)))
      ids = self._source.ids(self._seed, self._positions[numbers])
      examples = self._source.examples(ids)
      return [examples[name] for name in names]

    def fetch(first: tf.Tensor) -> dict[str, tf.Tensor]:
      arrays = tf.numpy_function(read, [first], [self.signature[n].dtype for n in names])
      shapes = [(None, *self.signature[n].shape) for n in names]
      return {n: tf.ensure_shape(a, shape) for n, a, shape in zip(names, arrays, shapes)}

    blocks = tf.data.Dataset.range(0, len(self._positions), _BLOCK)
    return blocks.map(fetch, num_parallel_calls=2, deterministic=True).unbatch()


def batches(
  source: ExampleSource,
  vocab: vocabulary.Vocabulary,
  *,
  seed: int,
  start: int,
  stop: int,
  batch_size: int,
  rows: np.ndarray | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """Batches of the examples at positions start .. stop of the stream, through a seqio task.

  Args:
    batch_size: of the whole batch, on all processes.
    rows: those that this process reads of each batch; all if not given.
  """
  rows = np.arange(batch_size) if rows is None else rows
  num_batches = (stop - start) // batch_size
  positions = Positions(start=start, batch_size=batch_size, num_batches=num_batches, rows=rows)
  indexed = IndexedSource(source, seed, positions)
  features = {
    name: seqio.Feature(vocab, add_eos=False, rank=len(spec.shape), dtype=spec.dtype)
    for name, spec in indexed.signature.items()
  }
  task = seqio.Task('training_examples', indexed, output_features=features, preprocessors=[])
  dataset = task.get_dataset(sequence_length=None, split='train', shuffle=False)
  yield from dataset.batch(len(rows), drop_remainder=True).prefetch(2).as_numpy_iterator()

"""seqio in both directions: its tasks as the data of an arm, and ours as tasks that it iterates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import importlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import seqio
import tensorflow as tf

from instructretro_jax.examples.sequences import ExampleSource
from instructretro_jax.examples.tasks import Task
from instructretro_jax.pipeline import manifest
from instructretro_jax.text import vocabulary

_OURS = ('tokens', 'targets', 'loss_mask', 'segments')  # what an example of this project has


class SeqioVocabulary(seqio.Vocabulary):
  """A vocabulary of this project for seqio, with the same ids."""

  def __init__(self, vocab: vocabulary.Vocabulary):
    super().__init__()
    self._vocab = vocab

  bos_id = property(lambda self: None)
  eos_id = property(lambda self: self._vocab.eos_id)
  unk_id = property(lambda self: self._vocab.unk_id)
  _base_vocab_size = property(lambda self: self._vocab.vocab_size)

  def _encode(self, s: str) -> Sequence[int]:
    return self._vocab.encode(s)

  def _decode(self, ids: Sequence[int]) -> str:
    return self._vocab.decode(ids)

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
    encode = lambda text: np.asarray(self._vocab.encode(text.decode()), np.int32)
    return tf.ensure_shape(tf.numpy_function(encode, [s], tf.int32), [None])

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    return tf.numpy_function(lambda x: self._vocab.decode(x.tolist()).encode(), [ids], tf.string)

  def __eq__(self, other: Any) -> bool:
    return isinstance(other, SeqioVocabulary) and self._vocab is other._vocab


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeqioData(Task):
  """A registered seqio task or mixture, or its offline cache, as the data of an arm.

  Examples with `targets` alone are packed into rows by seqio's LMFeatureConverter; with `inputs`
  and `targets` by its PrefixLMFeatureConverter, with the loss on targets. Unlike theirs, a row
  begins with the first token itself and not with padding, as all rows of this project do. Examples
  that have the arrays of this project (tokens, targets, loss_mask, segments, ...) are taken as they
  are, with their neighbours.

  The order is that of seqio's shuffling with the seed of the arm (`data_seed`): a position of the
  stream is so many rows into it. An arm that goes on after a stop reads over what it has seen.

  Attributes:
    mixture_or_task: the registered name.
    module: what registers it, imported first.
    vocabulary: the stage whose ids the examples are in; the task's own must be the same.
    seq_len: L, of a row.
    inputs_len: most tokens of `inputs`, where there are any; `targets` have the rest of the row.
    use_cached: read seqio's offline cache, below one of `cache_dirs`.
  """

  mixture_or_task: str
  module: str | None = None
  split: str = 'train'
  inputs_len: int | None = None
  use_cached: bool = False
  cache_dirs: tuple[str, ...] = ()
  with_neighbours: bool = False  # whether examples are this project's and have them

  kind: ClassVar[str] = 'train'

  def reads(self) -> tuple[str, ...]:
    """The vocabulary alone: seqio finds the data."""
    return (self.vocabulary,)

  def gives_neighbours(self, is_open: bool) -> bool:
    """Whether its examples have them."""
    return self.with_neighbours

  def counts(self, source: ExampleSource) -> dict[str, Any]:
    """The name of the task: it may have no end."""
    return {'seqio': self.mixture_or_task}

  def order(self, root: Path, source: ExampleSource) -> dict[str, Any]:
    """As Task.order: the name, and what is read of it."""
    named = {name: getattr(self, name) for name in ('mixture_or_task', 'split', 'inputs_len')}
    return super().order(root, source) | named

  def source(self, root: Path, split: str, chunk_len: int | None = None) -> ExampleSource:
    """The rows of the task's own `split`, whatever split is asked for.

    Raises StageError if there is no such task, or its ids are of another vocabulary.
    """
    if self.module is not None:
      importlib.import_module(self.module)
    if self.cache_dirs:
      seqio.add_global_cache_dirs(list(self.cache_dirs))
    try:
      task = seqio.get_mixture_or_task(self.mixture_or_task)
    except ValueError as error:
      raise manifest.StageError(
        f'seqio knows no task or mixture {self.mixture_or_task!r}: name the module that registers '
        f'it as SeqioData.module ({error})'
      ) from error
    theirs = task.output_features['targets'].vocabulary
    own = vocabulary.load(root / self.vocabulary)
    if vocabulary.fingerprint(theirs) != vocabulary.fingerprint(own):
      raise manifest.StageError(
        f'{self.mixture_or_task} has another vocabulary than the stage {self.vocabulary!r}: give '
        'the stage the file that the task encodes with'
      )
    return _Rows(self, task)

  def _dataset(self, task: seqio.Task | seqio.Mixture, seed: int) -> tf.data.Dataset:
    is_ours = set(_OURS) <= set(task.output_features)
    lengths = None if is_ours else self._lengths(task)
    dataset = task.get_dataset(
      sequence_length=lengths,
      split=self.split,
      use_cached=self.use_cached,
      shuffle=True,
      seed=seed,
      num_epochs=None,
    )
    if is_ours:
      return dataset
    kind = seqio.LMFeatureConverter if self.inputs_len is None else seqio.PrefixLMFeatureConverter
    return kind(pack=True)(dataset, lengths)

  def _lengths(self, task: seqio.Task | seqio.Mixture) -> dict[str, int]:
    if ('inputs' in task.output_features) != (self.inputs_len is not None):
      raise manifest.StageError(
        f'{self.mixture_or_task} has the features {sorted(task.output_features)}, and inputs_len '
        f'is {self.inputs_len}: give inputs_len if, and only if, there are inputs'
      )
    if self.inputs_len is None:
      return {'targets': self.seq_len}
    return {'inputs': self.inputs_len, 'targets': self.seq_len - self.inputs_len}


class _Rows:
  """Rows by their position in the stream of seqio: an example source that is read in order."""

  def __init__(self, data: SeqioData, task: seqio.Task | seqio.Mixture):
    self._data, self._task = data, task
    self._seed: int | None = None
    self._stream: Iterator[dict[str, np.ndarray]] = iter(())
    self._next = 0  # position of what the stream gives next

  def __len__(self) -> int:
    return np.iinfo(np.int64).max  # the stream begins again

  def ids(self, seed: int, positions: np.ndarray) -> np.ndarray:
    """The positions themselves, in the order that the seed gives."""
    if seed != self._seed:
      self._seed, self._next = seed, 0
      self._stream = self._open(0)
    return positions

  def examples(self, ids_B: np.ndarray) -> dict[str, np.ndarray]:
    rows = [self._row(int(position)) for position in ids_B]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

  def _row(self, position: int) -> dict[str, np.ndarray]:
    if position != self._next:
      ahead = position - self._next
      if ahead < 0:
        self._stream, ahead = self._open(position), 0
      for _ in range(ahead):
        next(self._stream)
    self._next = position + 1
    try:
      row = next(self._stream)
    except StopIteration:
      raise manifest.StageError(
        f'{self._data.mixture_or_task} has no example in its split {self._data.split}'
      ) from None
    return _ours(row)

  def _open(self, position: int) -> Iterator[dict[str, np.ndarray]]:
    dataset = self._data._dataset(self._task, self._seed)
    return dataset.skip(position).as_numpy_iterator()


def _ours(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The arrays of an example of this project."""
  if set(_OURS) <= row.keys():
    return {name: x.astype(bool) if name == 'neighbour_mask' else x for name, x in row.items()}
  tokens, segments = row['decoder_target_tokens'], row['decoder_segment_ids']
  behind = lambda x: np.concatenate([x[1:], np.zeros(1, x.dtype)])
  continues = (segments == behind(segments)) & (segments > 0)
  return {
    'tokens': tokens.astype(np.int32),
    'targets': np.where(continues, behind(tokens), 0).astype(np.int32),
    'loss_mask': (continues * behind(row['decoder_loss_weights'])).astype(np.float32),
    'segments': segments.astype(np.int32),
    'positions': row['decoder_positions'].astype(np.int32),
  }


def register(
  name: str,
  source: ExampleSource,
  vocab: vocabulary.Vocabulary,
  *,
  data_seed: int,
  num_examples: int,
) -> seqio.Task:
  """Registers the first examples of a stream as a seqio task, in the order of training.

  Args:
    source: of any task of this project; features are its arrays, with their ranks and dtypes.
    data_seed: of the arm that reads the same stream.

  Raises ValueError if the name is taken.
  """
  example = source.examples(source.ids(data_seed, np.zeros(1, np.int64)))
  signature = {n: tf.TensorSpec(x.shape[1:], x.dtype) for n, x in example.items()}
  theirs = SeqioVocabulary(vocab)

  def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
    del split, shuffle_files, seed  # one split, in order

    def examples() -> Iterator[dict[str, np.ndarray]]:
      for position in range(num_examples):
        batch = source.examples(source.ids(data_seed, np.array([position])))
        yield {n: x[0] for n, x in batch.items()}

    return tf.data.Dataset.from_generator(examples, output_signature=signature)

  return seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(
      dataset, splits=('train',), num_input_examples={'train': num_examples}
    ),
    preprocessors=[],
    output_features={
      n: seqio.Feature(theirs, add_eos=False, rank=len(spec.shape), dtype=spec.dtype)
      for n, spec in signature.items()
    },
  )

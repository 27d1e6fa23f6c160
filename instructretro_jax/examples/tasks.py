"""Tasks: what an arm is trained on, and what follows from it."""

from __future__ import annotations

import abc
from collections.abc import Mapping
import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from instructretro_jax.examples.instructions import Instructions
from instructretro_jax.examples.mixture import Mixture
from instructretro_jax.examples.sequences import ExampleSource, Sequences
from instructretro_jax.pipeline import configuration, manifest
from instructretro_jax.questions.passage_windows import PassageNeighbours, read_passages
from instructretro_jax.questions.questions import read_questions
from instructretro_jax.retrieval.neighbours import NeighbourTable
from instructretro_jax.text import vocabulary
from instructretro_jax.text.chunks import ChunkStore

ArraySpec = tuple[tuple[int, ...], type[np.generic]]  # shape of one example, and dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
  """Base of all tasks: frozen dataclasses that gin builds, part of the identity of an arm.

  Attributes:
    seq_len: L, tokens of a row.
  """

  vocabulary: str = 'vocabulary'
  seq_len: int
  num_neighbours: int = 2  # K

  kind: ClassVar[str]  # of training: 'train' on text, 'instruct' on dialogues

  @abc.abstractmethod
  def reads(self) -> tuple[str, ...]:
    """The stages that `source` reads."""

  @abc.abstractmethod
  def source(self, root: Path, split: str, chunk_len: int | None = None) -> ExampleSource:
    """The examples of one split.

    Args:
      chunk_len: C of the model, if it reads neighbours; they come with the examples then.
    """

  @abc.abstractmethod
  def gives_neighbours(self, is_open: bool) -> bool:
    """Whether examples come with neighbours to an arm whose gate is open, or closed."""

  @property
  def rows_hold_strangers(self) -> bool:
    """Whether a row holds texts that may not read each other's neighbours."""
    return False

  def longest(self, source: ExampleSource) -> int:
    """The most tokens that count as one text: learned positions are needed for so many."""
    return self.seq_len

  def order(self, root: Path, source: ExampleSource) -> dict[str, Any]:
    """What decides, with a seed, which example comes when, as JSON.

    A position counts in this unit: only a task with the same order can go on from it.
    """
    kind = configuration.class_name(type(self))
    return {'task': kind, 'seq_len': self.seq_len, 'examples': len(source)}

  def counts(self, source: ExampleSource) -> dict[str, Any]:
    """What the manifest of an arm says of its examples."""
    return {'examples': len(source)}

  def example_specs(self, chunk_len: int, is_open: bool) -> Mapping[str, ArraySpec]:
    """Shape and dtype of the arrays of an example that the step gets, without reading any.

    Args:
      is_open: whether the gate of the arm is open.
    """
    L, N = self.seq_len, self.seq_len // chunk_len
    specs = {name: ((L,), np.int32) for name in ('tokens', 'targets', 'segments')}
    specs['loss_mask'] = ((L,), np.float32)
    if self.gives_neighbours(is_open):
      shape = (N, self.num_neighbours, 2 * chunk_len)
      specs |= {'neighbours': (shape, np.int32), 'neighbour_mask': (shape, np.bool_)}
    return specs


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModel(Task):
  """Next-token prediction on the chunk store, with neighbours if a table is named.

  Attributes:
    cache: the stage (`examples.cache_stage.Cache`) that wrote the examples of the training split
      as sequential files; they are read from there. None: they are joined as they are read.
  """

  chunks: str = 'chunks'
  neighbours: str | None = None
  cache: str | None = None

  kind: ClassVar[str] = 'train'

  def reads(self) -> tuple[str, ...]:
    """The stages whose folders `build` reads."""
    if self.cache:
      return (self.cache, self.vocabulary)
    return (self.chunks, self.vocabulary, *([self.neighbours] if self.neighbours else []))

  def gives_neighbours(self, is_open: bool) -> bool:
    """Whether a neighbour table is named."""
    return self.neighbours is not None

  def source(self, root: Path, split: str, chunk_len: int | None = None) -> ExampleSource:
    """The examples of one split.

    Raises StageError if the split has less text than one example, or those in the cache are of
    another task.
    """
    if self.cache:
      return self._cached(root / self.cache, split)
    store = ChunkStore(root / self.chunks, split)
    if len(store) * store.chunk_len < self.seq_len:
      raise manifest.StageError(
        f'the {split} split has {len(store)} chunks of {store.chunk_len} tokens, too few for one '
        f'sequence of {self.seq_len}: give more text, or lower seq_len'
      )
    return self.sequences(root, split)

  def sequences(self, root: Path, split: str) -> Sequences:
    """The examples of one split, joined as they are read."""
    folder = root / self.chunks
    return Sequences(
      ChunkStore(folder, split),
      self.seq_len,
      vocabulary.load(root / self.vocabulary).pad_id,
      ChunkStore(folder, 'train'),
      NeighbourTable(root / self.neighbours, split) if self.neighbours else None,
      self.num_neighbours,
    )

  def order(self, root: Path, source: ExampleSource) -> dict[str, Any]:
    """As Task.order: the chunks, and how many of them make an example."""
    if self.cache is None:
      chunks = manifest.read_manifest(root / self.chunks).fingerprint
      return super().order(root, source) | {'chunks': chunks}
    written = manifest.read_manifest(root / self.cache)
    epoch = {'examples': written.counts['examples_of_an_epoch']}
    return super().order(root, source) | epoch | {'chunks': written.plan.inputs[self.chunks]}

  def _cached(self, folder: Path, split: str) -> ExampleSource:
    from instructretro_jax.examples import cached  # loads TensorFlow: only if used

    if split != cached.SPLIT:
      raise manifest.StageError(
        f'{folder} holds the split {cached.SPLIT}, not {split}: unset cache'
      )
    written = manifest.read_manifest(folder).plan.arguments
    own = configuration.to_json(dataclasses.replace(self, cache=None))
    if wrong := [name for name in own if own[name] != written['task'][name]]:
      raise manifest.StageError(
        f'{folder} holds examples with other values of {wrong}: '
        'give cache_stage.Cache and the arm the same task'
      )
    return cached.CachedExamples(folder, written['data_seed'])


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstructionTuning(Task):
  """Answers to questions with their passages in the prompt.

  Attributes:
    is_packed: a row holds as many dialogues as it has room for, and none sees another.
    rates: share of each task among the dialogues, as pairs of task and rate; those that are not
      named are left out. None: all questions, each once an epoch.
    neighbours: the stage whose passages the encoder reads, where the gate of the arm is open;
      None: the windows of the question's own.
  """

  questions: str = 'questions'
  is_packed: bool = False
  rates: tuple[tuple[str, float], ...] | None = None
  neighbours: str | None = None

  kind: ClassVar[str] = 'instruct'

  def __post_init__(self):
    if self.rates is not None:
      Mixture([1] * len(self.rates), [rate for _, rate in self.rates])

  def reads(self) -> tuple[str, ...]:
    """The stages whose folders `build` reads."""
    stages = (self.questions, self.vocabulary)
    return stages if self.neighbours is None else (*stages, self.neighbours)

  def gives_neighbours(self, is_open: bool) -> bool:
    """Only where they are read."""
    return is_open

  def order(self, root: Path, source: ExampleSource) -> dict[str, Any]:
    """As Task.order: the questions, and how they are mixed and packed into rows."""
    return super().order(root, source) | {
      'questions': manifest.read_manifest(root / self.questions).fingerprint,
      'is_packed': self.is_packed,
      'rates': configuration.to_json(self.rates),
    }

  @property
  def rows_hold_strangers(self) -> bool:
    """Of packed rows, the dialogues are."""
    return self.is_packed

  def source(self, root: Path, split: str, chunk_len: int | None = None) -> Instructions:
    """The dialogues of one split."""
    vocab, neighbours = vocabulary.load(root / self.vocabulary), None
    if chunk_len is not None:
      retrieved = read_passages(root / self.neighbours, split) if self.neighbours else None
      neighbours = PassageNeighbours(vocab, chunk_len, self.num_neighbours, retrieved)
    return Instructions(
      read_questions(root / self.questions, split),
      vocab,
      self.seq_len,
      neighbours=neighbours,
      is_packed=self.is_packed,
      rates=self.rates,
    )

  def longest(self, source: Instructions) -> int:
    """Tokens of the longest dialogue."""
    return source.longest

  def counts(self, source: Instructions) -> dict[str, Any]:
    """Also what became of the questions."""
    return super().counts(source) | {'instructions': source.counts}

  def example_specs(self, chunk_len: int, is_open: bool) -> Mapping[str, ArraySpec]:
    """Also the positions inside of dialogues."""
    specs = super().example_specs(chunk_len, is_open)
    return {**specs, 'positions': ((self.seq_len,), np.int32)}

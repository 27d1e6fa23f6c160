"""Stage: zero-shot questions, with more and fewer passages, encoder on and off."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

from instructretro_jax.evaluate.answers import METRICS, holds_answer, likeliest
from instructretro_jax.evaluate.readers import (
  CheckpointReader,
  HuggingFaceReader,
  Limits,
  Query,
  Reader,
  answer_of,
  options_of,
)
from instructretro_jax.evaluate.scores import CEILING, CHOICE, System, read_records, score_rows
from instructretro_jax.inference.batching import check_batch_size
from instructretro_jax.model.sharding import ONE_DEVICE, MeshConfig
from instructretro_jax.pipeline import manifest
from instructretro_jax.pipeline.paths import to_path
from instructretro_jax.pipeline.stage import Stage
from instructretro_jax.questions.passage_windows import read_passages
from instructretro_jax.questions.prompts import Prompter
from instructretro_jax.questions.questions import Question, read_questions
from instructretro_jax.text import vocabulary
from instructretro_jax.train.checkpoint import Checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShot(Stage):
  """Answers held-out questions with more and fewer passages, encoder on and off.

  Writes a file of records for each system, and results.json.
  With the encoder on, the first passages are the neighbours of every chunk of the prompt (the paper
  gives the encoder the best two of those in the prompt); it is on for arms that have one, and only
  where passages are in the prompt too. An arm that never has it on is loaded without it.

  Attributes:
    arms: stages with checkpoints.
    hugging_face: more models, folders or names that the transformers library opens.
    passages: a stage whose passages are read; None: each question's own.
    own_first: with such a stage, questions that have passages of their own read those.
    num_passages: in the prompt; one system each.
    encoders: 'off' and 'on'.
    max_questions: of each task, the first of the held-out split that fit a prompt.
    prompt_len: tokens of a prompt; passages are cut to fit.
    num_neighbours: passages for the encoder.
    mesh: of the devices of process 0 that share a checkpoint: `tensor` of them each parameter.
    baseline: arm against which the others are held, with as many passages; the first if not given.
  """

  name: str = 'questions_eval'
  arms: tuple[str, ...]
  hugging_face: tuple[str, ...] = ()
  questions: str = 'questions'
  vocabulary: str = 'vocabulary'
  passages: str | None = None
  own_first: bool = False
  num_passages: tuple[int, ...] = (0, 5)
  encoders: tuple[str, ...] = ('off', 'on')
  max_questions: int
  prompt_len: int
  num_new: int
  num_neighbours: int = 2
  batch_size: int = 8
  mesh: MeshConfig = ONE_DEVICE
  baseline: str | None = None

  only_how: ClassVar[frozenset[str]] = frozenset({'batch_size'})

  def __post_init__(self):
    if not set(self.encoders) <= {'off', 'on'}:
      raise ValueError(f"encoders={self.encoders}: each is 'off' or 'on'")
    check_batch_size(self.batch_size)
    for name in ('max_questions', 'prompt_len', 'num_new', 'num_neighbours'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)} is 1 or more')
    if self.baseline is not None and self.baseline not in (*self.arms, *self.hugging_face):
      raise ValueError(f'baseline={self.baseline!r} is none of {(*self.arms, *self.hugging_face)}')

  def input_files(self) -> tuple[Path, ...]:
    """Those of the models that are folders."""
    folders = [to_path(name) for name in self.hugging_face]
    return tuple(path for folder in folders if folder.is_dir() for path in folder.rglob('*'))

  def reads(self) -> tuple[str, ...]:
    """The stages whose folders `build` reads."""
    passages = [self.passages] if self.passages else []
    return (self.questions, self.vocabulary, *passages, *self.arms)

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    """Writes what every system answers to every question, and the scores."""
    questions = self._first_of_each_task(root)
    passages = self._passages_of(root, questions)
    records = {}
    for arm in (*self.arms, *self.hugging_face):
      systems = list(self._systems(root, arm))
      missing = [system for system in systems if not _file(folder, system).exists()]
      if missing:
        reader = self._reader(root, arm, any(system.encoder == 'on' for system in missing))
        for system in missing:
          lines = [
            json.dumps(record, ensure_ascii=False) + '\n'
            for record in self._records(system, reader, questions, passages)
          ]
          manifest.write_text(_file(folder, system), ''.join(lines))
      records |= {system: read_records(_file(folder, system)) for system in systems}
    rows = score_rows(records, self.baseline or next(iter(records)).arm)
    manifest.write_text(folder / 'results.json', json.dumps(rows, indent=1))
    counts = collections.Counter(question.task for question in questions)
    return {'questions': dict(sorted(counts.items())), 'systems': len(records)}

  def _first_of_each_task(self, root: Path) -> list[Question]:
    prompter = Prompter(vocabulary.load(root / self.vocabulary))
    taken: collections.Counter[str] = collections.Counter()
    chosen = []
    for question in read_questions(root / self.questions, 'heldout'):
      if taken[question.task] < self.max_questions and prompter.fits(question, self.prompt_len):
        taken[question.task] += 1
        chosen.append(question)
    return chosen

  def _passages_of(self, root: Path, questions: Sequence[Question]) -> dict[str, tuple[str, ...]]:
    """The passages of each question by its id, best first."""
    if self.passages is None:
      return {question.id: question.shown_passages for question in questions}
    found = read_passages(root / self.passages, 'heldout')
    reads_own = lambda question: self.own_first and question.passages
    return {q.id: q.shown_passages if reads_own(q) else tuple(found[q.id]) for q in questions}

  def _systems(self, root: Path, arm: str) -> Iterator[System]:
    can_be_on = 'on' in self.encoders and arm in self.arms
    can_be_on = can_be_on and Checkpoint(root / arm).has_encoder()
    for num_passages in self.num_passages:
      for encoder in self.encoders:
        if encoder == 'off' or (num_passages and can_be_on):
          yield System(arm, encoder, num_passages)

  def _reader(self, root: Path, arm: str, with_encoder: bool) -> Reader:
    limits = Limits(
      prompt_len=self.prompt_len,
      num_new=self.num_new,
      num_neighbours=self.num_neighbours,
      batch_size=self.batch_size,
    )
    if arm in self.hugging_face:
      return HuggingFaceReader(arm, limits)
    return CheckpointReader(root / arm, limits, with_encoder, mesh=self.mesh)

  def _records(
    self,
    system: System,
    reader: Reader,
    questions: Sequence[Question],
    passages: dict[str, tuple[str, ...]],
  ) -> Iterator[dict[str, Any]]:
    """What each question was answered, and how that is judged."""
    queries = [
      Query(
        question=question,
        passages=passages[question.id][: system.passages],
        encoder_on=system.encoder == 'on',
      )
      for question in questions
    ]
    decided = [query for query in queries if options_of(query.question)]
    choices = dict(zip((query.question.id for query in decided), reader.choices(decided)))
    for query, written in zip(queries, reader.answers(queries)):
      question = query.question
      answer = answer_of(written, question)
      scores = {m: METRICS[m](answer, question.answers) for m in question.how.metrics}
      record = {'id': question.id, 'task': question.task, 'answer': answer, 'written': written}
      if log_probs := choices.get(question.id):
        chosen = _chosen(log_probs, question, system)
        scores[CHOICE] = float(chosen in question.answers)
        record |= {'chosen': chosen, 'log_probs': [round(x, 4) for x in log_probs]}
      elif query.passages and question.how.is_extractive:
        scores[CEILING] = holds_answer(query.passages, question.answers)
      rounded = {name: round(value, 6) for name, value in scores.items()}
      yield {**record, 'references': question.answers, 'scores': rounded}


def _chosen(log_probs: Sequence[float], question: Question, system: System) -> str:
  try:
    return likeliest(log_probs, options_of(question))
  except ValueError as error:
    raise manifest.StageError(
      f'{system.arm} cannot decide {question.id}: {error}; look for NaN in its weights'
    ) from error


def _file(folder: Path, system: System) -> Path:
  arm = system.arm.replace('/', '_')
  name = f'{arm}-encoder_{system.encoder}-passages_{system.passages}.jsonl'
  return folder / 'records' / name

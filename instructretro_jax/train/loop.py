"""The training stage: one loop for pretraining, Retro-fitting and instruction tuning."""

from __future__ import annotations

from collections.abc import Mapping
import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any, ClassVar

import jax
from jax.sharding import Mesh
import numpy as np

from instructretro_jax.examples.stream import batches
from instructretro_jax.examples.tasks import Task
from instructretro_jax.model.config import RetroConfig
from instructretro_jax.model.cross_attention_init import CrossAttentionInit
from instructretro_jax.model.execution import Execution
from instructretro_jax.model.param_groups import RETRIEVAL
from instructretro_jax.model.retro import Retro
from instructretro_jax.model.sharding import MeshConfig, local_rows, put_batches
from instructretro_jax.pipeline import configuration
from instructretro_jax.pipeline.hosts import Hosts
from instructretro_jax.pipeline.stage import Stage
from instructretro_jax.text import vocabulary
from instructretro_jax.train.arm_checks import (
  check_enough,
  check_longest,
  check_room,
  check_settings,
  is_longer,
)
from instructretro_jax.train.checkpoint import Checkpoints, model_record
from instructretro_jax.train.compiled_step import CompiledStep, compile_step
from instructretro_jax.train.execution_log import note_execution
from instructretro_jax.train.fingerprint import params_sha256
from instructretro_jax.train.gates import RANDOM, with_random_gates
from instructretro_jax.train.heldout import Evaluator, HeldOut, History
from instructretro_jax.train.initial_state import Initializer, first_example, first_or_latest
from instructretro_jax.train.keep import Keep
from instructretro_jax.train.mesh import check_params, training_mesh
from instructretro_jax.train.metrics import TrainLog
from instructretro_jax.train.optimizer import Optimizer
from instructretro_jax.train.profile import Profile
from instructretro_jax.train.step import TrainState
from instructretro_jax.train.steps import take_steps
from instructretro_jax.train.utilisation import secs_at_peak

_FROZEN_RETRIEVAL = (RETRIEVAL, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Stage):
  """Trains one arm.

  Attributes:
    task: what it is trained on.
    model: the architecture; with gate 0 only its decoder exists and is trained.
    execution: how it is computed.
    init_from: arm whose last checkpoint it starts from; a GPT where this arm is a Retro model
      gives its decoder.
    gate: scale of the cross-attention during training; 'random' is 0 or 1 for each row, decided by
      `data_seed` and the row's place in the stream.
    keep_retro: with gate 0, carry the encoder and cross-attention of `init_from` along untouched:
      the optimizer gets them as a group of multiplier 0.
    init: how a new cross-attention begins (see model/cross_attention_init.py).
    batch_size: sequences a step.
    num_microbatches: parts of a batch that are computed one after the other, to save memory.
    data_seed: decides the order of the examples.
    continue_data: begin behind the examples that `init_from` has seen; it must have the same
      `data_seed`, so that its order is continued.
    checkpoint_every: steps; the last is saved too, and the one at which a machine is taken away.
    keep: which checkpoints are.
    profile: first and last step of a trace below logs/profile.
    heldout: losses on held-out text that are logged, and may end the arm.
  """

  task: Task
  model: RetroConfig
  execution: Execution = Execution()
  optimizer: Optimizer
  num_steps: int
  batch_size: int
  num_microbatches: int = 1
  gate: float | str
  init_from: str | None = None
  keep_retro: bool = False
  init: CrossAttentionInit = CrossAttentionInit()
  seed: int = 0
  data_seed: int = 0
  continue_data: bool = False
  checkpoint_every: int = 100
  keep: Keep = Keep()
  profile: tuple[int, int] | None = None
  heldout: HeldOut | None = None
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self):
    check_settings(self)
    if self.keep_retro and self.gate == 0:
      optimizer = self.optimizer.with_multiplier(*_FROZEN_RETRIEVAL)
      object.__setattr__(self, 'optimizer', optimizer)

  unlisted: ClassVar[frozenset[str]] = frozenset({'logs', 'checkpoints'})
  on_all_hosts: ClassVar[bool] = True
  only_how: ClassVar[frozenset[str]] = frozenset(
    {'num_microbatches', 'checkpoint_every', 'profile'}
  )

  @property
  def with_retrieval(self) -> bool:
    """Whether the arm has an encoder and cross-attention at all."""
    return self.gate != 0 or self.keep_retro

  def summary(self) -> str:
    """What the arm is trained on, in a sentence."""
    way = 'without' if self.gate == 0 else 'with'
    start = self.init_from or 'new parameters'
    return f'Trains {way} retrieval for {self.num_steps} steps, from {start}.'

  def reads(self) -> tuple[str, ...]:
    """The stages whose folders `build` reads."""
    evaluated = self.heldout.task.reads() if self.heldout else ()
    names = (*self.task.reads(), *evaluated, *([self.init_from] if self.init_from else []))
    return tuple(dict.fromkeys(names))

  def extends(self, there: Mapping[str, Any]) -> bool:
    """Whether these are the arguments of this arm with fewer steps; see `is_longer`."""
    return is_longer(self.name, there, configuration.identity(self), self.optimizer)

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    """Trains from the latest checkpoint on."""
    vocab = vocabulary.load(root / self.task.vocabulary)
    check_room(vocab, self.model.decoder)
    fingerprint = vocabulary.fingerprint(vocab)
    source = self.task.source(root, 'train', self.model.chunk_len if self.gate != 0 else None)
    check_longest(self.name, self.task.longest(source), self.model.decoder)
    check_enough(self.name, len(source), self.batch_size)
    given = root / self.init_from if self.init_from else None
    order, first = self.task.order(root, source), 0
    if self.continue_data and given is not None:
      first = first_example(given, self.name, self.data_seed, order)
    record = {'vocabulary': fingerprint, **model_record(self.model, self.execution)}
    mesh = training_mesh(self.mesh, self.batch_size, self.num_microbatches)
    check_params(self.model, self.with_retrieval, mesh)
    checkpoints = Checkpoints(folder / 'checkpoints', self.keep)
    with contextlib.closing(checkpoints), jax.set_mesh(mesh):
      step_of = functools.cache(functools.partial(self.compile_step, mesh))
      state, latest = first_or_latest(
        checkpoints,
        self._initializer(fingerprint),
        step_of,
        given,
        scan_layers=self.execution.scan_layers,
      )
      done, lengths = int(state.step), latest.get('num_steps', [])
      history = History(latest.get('heldout', []), self.heldout.patience if self.heldout else None)
      if self.num_steps not in lengths:
        lengths.append(self.num_steps)
      longer = () if lengths[0] == self.num_steps else (lengths[0],)
      step = step_of(self.execution.scan_layers, *longer)
      evaluator = self._evaluator(root, mesh)
      note_execution(self, mesh, folder / 'logs', done)
      place = {
        'seed': self.data_seed,
        'start': first + done * self.batch_size,
        'batch_size': self.batch_size,
        'rows': local_rows(mesh, self.batch_size),
      }
      stream = batches(source, stop=first + self.num_steps * self.batch_size, **place)
      if self.gate == RANDOM:
        stream = with_random_gates(stream, **place)
      log = self._open_log(folder / 'logs', state, mesh, lengths[0])
      placed = put_batches(map(_for_model, stream), mesh, self.batch_size)

      def save(state: TrainState, n: int) -> None:
        example = first + n * self.batch_size
        position = {'data_seed': self.data_seed, 'example': example, 'order': order}
        beside = {'data': position, 'num_steps': lengths, 'heldout': list(history.rows)}
        checkpoints.save(state, record | beside, history.at(n))

      def evaluate(state: TrainState, n: int) -> dict[str, float]:
        if evaluator is None or not self.heldout.is_due(n, self.num_steps):
          return {}
        losses = evaluator.losses(state)
        history.add(n, losses)
        return losses

      with contextlib.closing(log):
        state = take_steps(
          state,
          step.function,
          placed,
          num_steps=self.num_steps,
          checkpoint_every=self.checkpoint_every,
          save=save,
          log=log,
          evaluate=evaluate,
          has_ended=lambda: history.has_ended,
          profile=Profile(self.profile, folder / 'logs' / 'profile', done, self.num_steps),
        )
    before = {'trained_longer_from': lengths[:-1]} if lengths[:-1] else {}
    best = {'best_heldout': history.best} if self.heldout and self.heldout.patience else {}
    counts = self.task.counts(source) | _param_counts(state) | before | best
    return {'steps': int(state.step), **counts}

  def _evaluator(self, root: Path, mesh: Mesh) -> Evaluator | None:
    if self.heldout is None:
      return None
    model = Retro(self.model, self.execution)
    return Evaluator(self.heldout, root, model, mesh, self.batch_size, self.with_retrieval)

  def compile_step(
    self, mesh: Any, scan_layers: bool | None = None, warmup_of: int | None = None
  ) -> CompiledStep:
    """The step of this arm on a mesh, which may be one of chips that are not here.

    Args:
      scan_layers: how the state holds layers; as `execution` says if not given.
      warmup_of: as in `Optimizer.schedule`.
    """
    given = self.execution.scan_layers if scan_layers is None else scan_layers
    return compile_step(
      self.model,
      dataclasses.replace(self.execution, scan_layers=given),
      self.optimizer,
      mesh,
      num_steps=self.num_steps,
      with_retrieval=self.with_retrieval,
      gate=self.gate,
      num_microbatches=self.num_microbatches,
      warmup_of=warmup_of,
    )

  def _initializer(self, fingerprint: str) -> Initializer:
    return Initializer(
      model=self.model,
      with_retrieval=self.with_retrieval,
      seed=self.seed,
      cross_attention=self.init if self.gate != 0 else None,
      vocabulary=fingerprint,
      keeps_retrieval=self.keep_retro and self.gate == 0,
    )

  def _open_log(self, folder: Path, state: TrainState, mesh: Mesh, warmup_of: int) -> TrainLog:
    return TrainLog(
      folder,
      self.name,
      first_step=int(state.step),
      num_steps=self.num_steps,
      rates=self.optimizer.schedule(self.num_steps, warmup_of),
      secs_at_peak=secs_at_peak(self, state, mesh),
      is_writer=Hosts.here().is_main,
    )


def _param_counts(state: TrainState) -> dict[str, Any]:
  return {
    'params_sha256': params_sha256(state.params),
    'parameters': sum(x.size for x in jax.tree.leaves(state.params)),
    'trained_parameters': sum(x.size for x in state.trainable.values()),
  }


def _for_model(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {name: array for name, array in batch.items() if name != 'chunk_ids'}

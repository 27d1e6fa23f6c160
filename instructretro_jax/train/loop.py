"""The training stage: one loop for pretraining, Retro-fitting and instruction tuning."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
import time
from typing import Any, ClassVar

from clu import metric_writers
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from instructretro_jax import manifest
from instructretro_jax.array_types import Params
from instructretro_jax.data import vocabulary
from instructretro_jax.data.tasks import InstructionTuning, Task, batches
from instructretro_jax.model.config import RetroConfig, decoder_differences
from instructretro_jax.model.retro import Retro
from instructretro_jax.model.segments import one_by_one, stack_layers
from instructretro_jax.model.start import CrossAttentionStart, fit_from_gpt, start_cross_attention
from instructretro_jax.retrieval.neighbours import NeighbourTable
from instructretro_jax.sharding import MeshConfig, make_mesh, param_shardings, put_batch
from instructretro_jax.stage import Stage
from instructretro_jax.train.checkpoint import (
  Checkpoints,
  abstract_like,
  load_params,
  load_record,
  params_sha256,
)
from instructretro_jax.train.optimizer import (
  OptimizerConfig,
  make_optimizer,
  schedule,
  split_trainable,
)
from instructretro_jax.train.step import TrainState, make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Stage):
  """Trains one arm.

  Attributes:
    task: what it is trained on.
    model: the architecture; with gate 0 only its decoder exists and is trained.
    init_from: arm whose last checkpoint it starts from; a GPT where this arm is a Retro model
      gives its decoder.
    gate: scale of the cross-attention during training.
    keep_retro: with gate 0, carry the encoder and cross-attention of `init_from` along untouched.
    start: how a new cross-attention starts (see model/start.py).
    batch_size: sequences a step.
    num_microbatches: parts of a batch that are computed one after the other, to save memory.
    data_seed: decides the order of the examples.
    continue_data: begin behind the examples that `init_from` has seen; it must have the same
      `data_seed`, so that its order is continued.
  """

  task: Task
  model: RetroConfig
  optimizer: OptimizerConfig
  num_steps: int
  batch_size: int
  num_microbatches: int = 1
  gate: float
  init_from: str | None = None
  keep_retro: bool = False
  start: CrossAttentionStart = CrossAttentionStart()
  seed: int = 0
  data_seed: int = 0
  continue_data: bool = False
  checkpoint_every: int = 100
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self):
    if self.batch_size % self.num_microbatches:
      raise ValueError(
        f'{self.name}: batch_size {self.batch_size} is no multiple of num_microbatches '
        f'{self.num_microbatches}'
      )
    if self.continue_data and self.init_from is None:
      raise ValueError(
        f'{self.name}: continue_data needs init_from, the arm whose data it continues'
      )

  unlisted: ClassVar[frozenset[str]] = frozenset({'logs', 'checkpoints'})

  def reads(self) -> tuple[str, ...]:
    return (*self.task.reads(), *([self.init_from] if self.init_from else []))

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    mesh = make_mesh(self.mesh)
    vocab = vocabulary.load(root / self.task.vocabulary)
    if vocab.vocab_size > self.model.decoder.vocab_size:
      raise manifest.StageError(
        f'the vocabulary has {vocab.vocab_size} ids, the model room for '
        f'{self.model.decoder.vocab_size}: raise vocab_size of the model'
      )
    source = self.task.source(root, 'train', NeighbourTable)
    record = {'model': manifest.to_json(self.model), 'vocabulary': vocabulary.fingerprint(vocab)}
    first_example = self._first_example(root)
    checkpoints = Checkpoints(folder / 'checkpoints')
    with jax.set_mesh(mesh):
      state, optimizer = self._first_state(root, mesh, record)
      if (latest := checkpoints.latest_step()) is not None:
        state = checkpoints.restore(abstract_like(state))
      step = make_train_step(Retro(self.model), optimizer, self.gate, self.num_microbatches)
      step_fn = jax.jit(step, donate_argnums=0)
      stream = batches(
        source,
        vocab,
        seed=self.data_seed,
        batch_size=self.batch_size,
        start=first_example + (latest or 0) * self.batch_size,
        stop=first_example + self.num_steps * self.batch_size,
      )
      log = _Log(folder / 'logs', self, latest or 0)
      for n, batch in enumerate(stream, start=(latest or 0) + 1):
        state, metrics = step_fn(state, put_batch(_for_model(batch), mesh))
        log.add(n, metrics, int((batch['segments'] > 0).sum()))
        if n % self.checkpoint_every == 0 or n == self.num_steps:
          log.flush()
          position = {'data_seed': self.data_seed, 'example': first_example + n * self.batch_size}
          checkpoints.save(state, record | {'data': position})
          log.last_good = n
      log.close()
    checkpoints.close()
    final = {'params_sha256': params_sha256(jax.device_get(state.params))}
    final['parameters'] = sum(x.size for x in jax.tree.leaves(state.params))
    final['trained_parameters'] = sum(x.size for x in state.trainable.values())
    if isinstance(self.task, InstructionTuning):
      final['passages_cut'], final['questions_left_out'] = source.num_cut, source.num_left_out
    return {'steps': int(state.step), 'examples': len(source), **final}

  def _first_example(self, root: Path) -> int:
    """Position in the stream of examples at which this arm begins."""
    if not self.continue_data:
      return 0
    data = load_record(root / self.init_from).get('data')
    if data is None or data['data_seed'] != self.data_seed:
      raise manifest.StageError(
        f'{self.name} has data_seed {self.data_seed} and continues the data of {self.init_from}, '
        f'which has {data}: give both one seed, or set continue_data = False'
      )
    return data['example']

  def _first_state(
    self, root: Path, mesh: jax.sharding.Mesh, record: dict[str, Any]
  ) -> tuple[TrainState, optax.GradientTransformation]:
    params = self._first_params(root, mesh, record)
    rates = self.optimizer.group_rates
    trainable, frozen = split_trainable(params, rates)
    optimizer = make_optimizer(self.optimizer, self.num_steps, trainable)
    opt_state = jax.jit(optimizer.init)(trainable)
    return TrainState(jnp.zeros((), jnp.int32), trainable, frozen, opt_state), optimizer

  def _first_params(self, root: Path, mesh: jax.sharding.Mesh, record: dict[str, Any]) -> Params:
    if self.init_from is not None:
      given_model, given, given_record = load_params(root / self.init_from)
      if wrong := decoder_differences(given_model.decoder, self.model.decoder):
        raise manifest.StageError(f'{self.init_from} is another decoder: {"; ".join(wrong)}')
      if given_record['vocabulary'] != record['vocabulary']:
        raise manifest.StageError(f'{self.init_from} was trained with another vocabulary')
    with_retrieval = self.gate != 0 or self.keep_retro
    init = lambda: init_params(one_by_one(self.model), self.seed, with_retrieval)
    shardings = param_shardings(jax.eval_shape(init), mesh)
    params = jax.jit(lambda: nn.unbox(init()), out_shardings=shardings)()
    if self.gate != 0:
      params = start_cross_attention(params, self.start)
    if self.init_from is not None:
      if set(given) != set(params) or 'encoder' not in given:
        given = fit_from_gpt({k: v for k, v in given.items() if k != 'encoder'}, params)
      params = jax.tree.map(jax.device_put, given, shardings)
    held = jax.eval_shape(lambda: init_params(self.model, self.seed, with_retrieval))
    stack = lambda params: stack_layers(params, self.model)
    return jax.jit(stack, out_shardings=param_shardings(held, mesh))(params)


def init_params(config: RetroConfig, seed: int, with_retrieval: bool) -> Params:
  """Fresh parameters, boxed with their logical axes; the decoder's alone without retrieval."""
  tokens = jnp.zeros((1, config.chunk_len), jnp.int32)
  neighbours = jnp.zeros((1, 1, 1, 2 * config.chunk_len), jnp.int32)
  model, key = Retro(config), jax.random.key(seed)
  if not with_retrieval:
    return model.init(key, tokens, gate=0)['params']
  mask = jnp.ones(neighbours.shape, bool)
  return model.init(key, tokens, jnp.ones_like(tokens), neighbours, mask)['params']


def _for_model(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {name: array for name, array in batch.items() if name != 'chunk_ids'}


class _Log:
  """metrics.jsonl, TensorBoard and a progress bar, one step behind the device."""

  def __init__(self, folder: Path, config: Train, first_step: int):
    folder.mkdir(parents=True, exist_ok=True)
    self._path, self._name = folder / 'metrics.jsonl', config.name
    self._drop_after(first_step)
    self._writer = metric_writers.SummaryWriter(str(folder / 'tensorboard'))
    self._rates = schedule(config.optimizer, config.num_steps)
    self._bar = tqdm.tqdm(
      total=config.num_steps, initial=first_step, desc=config.name, unit='step', mininterval=2
    )
    self._pending: tuple[int, Any, int] | None = None
    self._clock = time.monotonic()
    self.last_good = first_step  # of a checkpoint; 0 where there is none

  def _drop_after(self, step: int) -> None:
    if self._path.exists():
      rows = [line for line in self._path.read_text().splitlines() if line.endswith('}')]
      kept = [line for line in rows if json.loads(line)['step'] <= step]
      manifest.write_text(self._path, ''.join(line + '\n' for line in kept))

  def add(self, step: int, metrics: Any, num_tokens: int) -> None:
    """Notes a dispatched step and writes the one before it."""
    self._write()
    self._pending = (step, metrics, num_tokens)

  def flush(self) -> None:
    """Writes the last step; a checkpoint may then name it good."""
    self._write()
    self._pending = None

  def close(self) -> None:
    self._bar.close()
    self._writer.close()

  def _write(self) -> None:
    if self._pending is None:
      return
    step, metrics, num_tokens = self._pending
    values = {name: float(x) for name, x in metrics.items()}
    if not math.isfinite(values['loss']):
      good = f'step {self.last_good}' if self.last_good else 'none'
      raise manifest.StageError(
        f'{self._name}: the loss of step {step} is {values["loss"]}. Last good checkpoint: {good}, '
        f'in {self._path.parent.parent / "checkpoints"}. Lower the learning rate and train again '
        f'with --rebuild={self._name}.'
      )
    now = time.monotonic()
    values['learning_rate'] = float(self._rates(step - 1))
    values['tokens_per_s'] = round(num_tokens / max(1e-9, now - self._clock), 1)
    self._clock = now
    with self._path.open('a') as file:
      file.write(json.dumps({'step': step, **values}) + '\n')
    self._writer.write_scalars(step, values)
    self._bar.update(1)
    self._bar.set_postfix(
      loss=f'{values["loss"]:.3f}', tokens_per_s=f'{values["tokens_per_s"]:.0f}', refresh=False
    )

"""The training stage: one loop for pretraining, Retro-fitting and instruction tuning."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from pathlib import Path
from typing import Any, ClassVar

from flax import traverse_util
import jax
from jax.sharding import Mesh
import numpy as np

from instructretro_jax.array_types import Params
from instructretro_jax.examples.sequences import ExampleSource
from instructretro_jax.examples.tasks import InstructionTuning, Task, batches
from instructretro_jax.model.config import RetroConfig, decoder_differences
from instructretro_jax.model.cross_attention_init import (
  CrossAttentionInit,
  fit_from_gpt,
  init_cross_attention,
)
from instructretro_jax.model.layer_groups import one_by_one, stack_layers
from instructretro_jax.model.retro import Retro
from instructretro_jax.model.sharding import MeshConfig, local_rows, make_mesh, put_batches
from instructretro_jax.pipeline import manifest
from instructretro_jax.pipeline.hosts import Hosts
from instructretro_jax.pipeline.stage import Stage
from instructretro_jax.retrieval.neighbours import NeighbourTable
from instructretro_jax.text import vocabulary
from instructretro_jax.train.checkpoint import (
  Checkpoints,
  load_record,
  param_shapes,
  params_sha256,
  restore_params,
)
from instructretro_jax.train.gates import RANDOM, with_random_gates
from instructretro_jax.train.metrics import TrainLog
from instructretro_jax.train.optimizer import OptimizerConfig, schedule
from instructretro_jax.train.state import (
  abstract_params,
  abstract_state,
  first_state,
  fresh_params,
  shardings_of,
)
from instructretro_jax.train.step import TrainState, make_train_step

_FROZEN_RETRIEVAL = ('encoder|cross_attention', 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Stage):
  """Trains one arm.

  Attributes:
    task: what it is trained on.
    model: the architecture; with gate 0 only its decoder exists and is trained.
    init_from: arm whose last checkpoint it starts from; a GPT where this arm is a Retro model
      gives its decoder.
    gate: scale of the cross-attention during training; 'random' is 0 or 1 for each row, decided by
      `data_seed` and the row's place in the stream.
    keep_retro: with gate 0, carry the encoder and cross-attention of `init_from` along untouched:
      the optimiser gets them as a group of rate 0.
    start: how a new cross-attention starts (see model/cross_attention_init.py).
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
  gate: float | str
  init_from: str | None = None
  keep_retro: bool = False
  init: CrossAttentionInit = CrossAttentionInit()
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
    if isinstance(self.gate, str) and self.gate != RANDOM:
      raise ValueError(f'{self.name}: the gate is a number or {RANDOM!r}, not {self.gate!r}')
    is_packed = isinstance(self.task, InstructionTuning) and self.task.is_packed
    if is_packed and self.gate != 0 and not self.model.mask_neighbours:
      raise ValueError(
        f'{self.name}: without mask_neighbours the dialogues of a row read the neighbours of each '
        'other: set mask_neighbours, or is_packed = False'
      )
    if self.keep_retro and self.gate == 0:
      others = [rate for rate in self.optimizer.lr_multipliers if rate != _FROZEN_RETRIEVAL]
      rates = (_FROZEN_RETRIEVAL, *others)
      optimizer = dataclasses.replace(self.optimizer, lr_multipliers=rates)
      object.__setattr__(self, 'optimizer', optimizer)
    if self.continue_data and self.init_from is None:
      raise ValueError(
        f'{self.name}: continue_data needs init_from, the arm whose data it continues'
      )

  unlisted: ClassVar[frozenset[str]] = frozenset({'logs', 'checkpoints'})
  on_all_hosts: ClassVar[bool] = True

  @property
  def _with_retrieval(self) -> bool:
    return self.gate != 0 or self.keep_retro

  def summary(self) -> str:
    way = 'without' if self.gate == 0 else 'with'
    start = self.init_from or 'new parameters'
    return f'Trains {way} retrieval for {self.num_steps} steps, from {start}.'

  def reads(self) -> tuple[str, ...]:
    return (*self.task.reads(), *([self.init_from] if self.init_from else []))

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    vocab = self._vocabulary(root)
    source = self._source(root)
    record = {'model': manifest.to_json(self.model), 'vocabulary': vocabulary.fingerprint(vocab)}
    first_example = self._first_example(root)
    mesh = make_mesh(self.mesh)
    checkpoints = Checkpoints(folder / 'checkpoints')
    with jax.set_mesh(mesh):
      state, step_fn = self._first_state(root, mesh, record, checkpoints)
      done = int(state.step)
      place = {
        'seed': self.data_seed,
        'start': first_example + done * self.batch_size,
        'batch_size': self.batch_size,
        'rows': local_rows(mesh, self.batch_size),
      }
      stop = first_example + self.num_steps * self.batch_size
      stream = batches(source, vocab, stop=stop, **place)
      if self.gate == RANDOM:
        stream = with_random_gates(stream, **place)
      log = self._open_log(folder / 'logs', done)
      placed = put_batches(map(_for_model, stream), mesh, self.batch_size)
      for n, batch in enumerate(placed, start=done + 1):
        state, metrics = step_fn(state, batch)
        log.add(n, metrics)
        if n % self.checkpoint_every == 0 or n == self.num_steps:
          log.flush()
          position = {'data_seed': self.data_seed, 'example': first_example + n * self.batch_size}
          checkpoints.save(state, record | {'data': position})
          log.last_good = n
      log.close()
    checkpoints.close()
    return {'steps': int(state.step), 'examples': len(source)} | self._counts(state, source)

  def _source(self, root: Path) -> ExampleSource:
    if not isinstance(self.task, InstructionTuning):
      return self.task.source(root, 'train', NeighbourTable)
    decoder = self.model.decoder
    source = self.task.source(root, 'train', self.model.chunk_len if self.gate != 0 else None)
    if decoder.positions == 'learned' and source.longest > decoder.max_len:
      raise manifest.StageError(
        f'{self.name}: a dialogue has {source.longest} tokens, and the decoder {decoder.max_len} '
        'learned positions: lower seq_len of the task, or raise max_len of the model'
      )
    return source

  def _vocabulary(self, root: Path) -> vocabulary.Vocabulary:
    vocab = vocabulary.load(root / self.task.vocabulary)
    if vocab.vocab_size > self.model.decoder.vocab_size:
      raise manifest.StageError(
        f'the vocabulary has {vocab.vocab_size} ids, the model room for '
        f'{self.model.decoder.vocab_size}: raise vocab_size of the model'
      )
    return vocab

  def _counts(self, state: TrainState, source: ExampleSource) -> dict[str, Any]:
    counts = {
      'params_sha256': params_sha256(state.params),
      'parameters': sum(x.size for x in jax.tree.leaves(state.params)),
      'trained_parameters': sum(x.size for x in state.trainable.values()),
    }
    if isinstance(self.task, InstructionTuning):
      counts['instructions'] = source.counts
    return counts

  def _open_log(self, folder: Path, first_step: int) -> TrainLog:
    return TrainLog(
      folder,
      self.name,
      first_step=first_step,
      num_steps=self.num_steps,
      rates=schedule(self.optimizer, self.num_steps),
      is_writer=Hosts.here().is_main,
    )

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
    self, root: Path, mesh: Mesh, record: dict[str, Any], checkpoints: Checkpoints
  ) -> tuple[TrainState, Callable[..., tuple[TrainState, dict[str, jax.Array]]]]:
    """The state where this arm was stopped, or else begins, and the compiled step."""
    params = abstract_params(self.model, self._with_retrieval, mesh)
    abstract, optimizer = abstract_state(params, self.optimizer, self.num_steps)
    if checkpoints.latest_step() is not None:
      state = checkpoints.restore(abstract)
    else:
      stack = lambda params: stack_layers(params, self.model)
      stack = jax.jit(stack, out_shardings=shardings_of(params))
      state = first_state(stack(self._first_params(root, mesh, record)), optimizer, abstract)
    step = make_train_step(Retro(self.model), optimizer, self.gate, self.num_microbatches)
    # moments keep their places, whatever the compiler would choose
    places = (shardings_of(abstract), None)
    return state, jax.jit(step, donate_argnums=0, out_shardings=places)

  def _first_params(self, root: Path, mesh: Mesh, record: dict[str, Any]) -> Params:
    """Parameters at step 0, one entry a layer: those of `init_from`, others fresh."""
    model = one_by_one(self.model)
    abstract = abstract_params(model, self._with_retrieval, mesh)
    given = self._given_params(root, abstract, record) if self.init_from else {}
    if given.keys() == traverse_util.flatten_dict(abstract, sep='/').keys():
      return traverse_util.unflatten_dict(given, sep='/')
    params = fresh_params(model, self.seed, abstract)
    if self.gate != 0:
      params = init_cross_attention(params, self.init)
    if given:
      params = fit_from_gpt(traverse_util.unflatten_dict(given, sep='/'), params)
    return params

  def _given_params(
    self, root: Path, abstract: Params, record: dict[str, Any]
  ) -> dict[str, jax.Array]:
    """Parameters of `init_from` by path: all that this arm has, or those of its decoder."""
    folder = root / self.init_from
    model, shapes = param_shapes(folder)
    if wrong := decoder_differences(model.decoder, self.model.decoder):
      raise manifest.StageError(f'{self.init_from} is another decoder: {"; ".join(wrong)}')
    if load_record(folder)['vocabulary'] != record['vocabulary']:
      raise manifest.StageError(f'{self.init_from} was trained with another vocabulary')
    wanted = traverse_util.flatten_dict(abstract, sep='/')
    if 'encoder' not in abstract:
      shapes = {path: shape for path, shape in shapes.items() if path in wanted}
    wrong = [p for p, shape in shapes.items() if p not in wanted or wanted[p].shape != shape]
    if any(path.startswith('encoder/') for path in shapes):
      wrong += [path for path in wanted if path not in shapes]
    if wrong:
      raise manifest.StageError(
        f'{self.init_from} has another retrieval part; they differ in {sorted(wrong)[:4]}'
      )
    return restore_params(folder, {path: wanted[path].sharding for path in shapes})


def _for_model(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {name: array for name, array in batch.items() if name != 'chunk_ids'}

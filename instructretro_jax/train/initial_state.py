"""Where an arm begins: its own latest checkpoint, else the weights of another, else fresh ones."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from pathlib import Path
from typing import Any

from flax import traverse_util
import jax
from jax.sharding import Mesh

from instructretro_jax.array_types import Params
from instructretro_jax.model.config import RetroConfig, decoder_differences, retrieval_differences
from instructretro_jax.model.cross_attention_init import (
  CrossAttentionInit,
  fit_from_gpt,
  init_cross_attention,
)
from instructretro_jax.model.layer_groups import stack_layers
from instructretro_jax.model.param_groups import has_retrieval
from instructretro_jax.pipeline import manifest
from instructretro_jax.train.checkpoint import Checkpoint, Checkpoints
from instructretro_jax.train.compiled_step import CompiledStep
from instructretro_jax.train.state import (
  abstract_params,
  first_state,
  fresh_params,
  relaid,
  shardings_of,
)
from instructretro_jax.train.step import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Initializer:
  """Makes the parameters of step 0.

  Attributes:
    cross_attention: how a new cross-attention is set; None: its gate is closed and it stays drawn.
    vocabulary: fingerprint of the vocabulary of this arm.
    keeps_retrieval: the retrieval part is to be that of what is given.
  """

  model: RetroConfig
  with_retrieval: bool
  seed: int
  cross_attention: CrossAttentionInit | None
  vocabulary: str
  keeps_retrieval: bool = False

  def params(self, mesh: Mesh, given_by: Path | None) -> Params:
    """Parameters with one entry a layer, on the mesh.

    Args:
      given_by: the stage folder whose last checkpoint is taken over: that of a GPT gives the
        decoder of a Retro model, that of a Retro model all of it; None: all are drawn.

    Raises StageError if the given ones do not fit.
    """
    abstract = abstract_params(self.model, self.with_retrieval, mesh)
    given = self._given(given_by, abstract) if given_by is not None else {}
    if given.keys() == traverse_util.flatten_dict(abstract, sep='/').keys():
      return traverse_util.unflatten_dict(given, sep='/')
    params = fresh_params(self.model, self.seed, abstract)
    if self.cross_attention is not None:
      params = init_cross_attention(params, self.cross_attention)
    return fit_from_gpt(traverse_util.unflatten_dict(given, sep='/'), params) if given else params

  def _given(self, given_by: Path, abstract: Params) -> dict[str, jax.Array]:
    """Given parameters by path: all that this arm has, or those of its decoder."""
    name, checkpoint = given_by.name, Checkpoint(given_by)
    if wrong := decoder_differences(checkpoint.config.decoder, self.model.decoder):
      raise manifest.StageError(f'{name} is another decoder: {"; ".join(wrong)}')
    if checkpoint.record['vocabulary'] != self.vocabulary:
      raise manifest.StageError(f'{name} was trained with another vocabulary')
    wanted, shapes = traverse_util.flatten_dict(abstract, sep='/'), checkpoint.param_shapes()
    if not self.with_retrieval:
      shapes = {path: shape for path, shape in shapes.items() if path in wanted}
    if has_retrieval(shapes.keys()):
      if wrong := retrieval_differences(checkpoint.config, self.model):
        raise manifest.StageError(f'{name} has another retrieval part: {"; ".join(wrong)}')
    elif self.keeps_retrieval:
      raise manifest.StageError(
        f'{name} has no encoder and cross-attention that could be kept: name an arm that has, or '
        'set keep_retro = False'
      )
    wrong = [p for p, shape in shapes.items() if p not in wanted or wanted[p].shape != shape]
    if has_retrieval(shapes.keys()):
      wrong += [path for path in wanted if path not in shapes]
    if wrong:
      raise manifest.StageError(
        f'{name} has another retrieval part; they differ in {sorted(wrong)[:4]}'
      )
    return checkpoint.restore({path: wanted[path].sharding for path in shapes})


def first_or_latest(
  checkpoints: Checkpoints,
  initializer: Initializer,
  step_of: Callable[[bool], CompiledStep],
  given_by: Path | None,
  *,
  scan_layers: bool,
) -> tuple[TrainState, dict[str, Any]]:
  """The state of the latest checkpoint, and its record, if there is one, else that of step 0.

  Args:
    step_of: takes the state, and says where its arrays go; of whether layers are stacked.
    scan_layers: whether the state is to hold repeating layers stacked.
  """
  step = step_of(scan_layers)
  if (latest := checkpoints.restore(lambda stacked: step_of(stacked).state)) is not None:
    state, record = latest
    was_scanned = record['execution']['scan_layers']
    if was_scanned != scan_layers:
      state = relaid(state, step.state, initializer.model, was_scanned)
    return state, record
  params = step.state.params
  mesh = jax.tree.leaves(params)[0].sharding.mesh
  stack = functools.partial(stack_layers, config=initializer.model, scan_layers=scan_layers)
  stack = jax.jit(stack, out_shardings=shardings_of(params))
  return first_state(stack(initializer.params(mesh, given_by)), step.optimizer, step.state), {}


def first_example(given: Path, name: str, data_seed: int, order: dict[str, Any]) -> int:
  """Position behind the examples that `given` has seen, for the arm `name` to continue there.

  Args:
    order: of the examples of this arm, as Task.order.

  Raises StageError if the order of its examples was another.
  """
  data: dict[str, Any] | None = Checkpoint(given).record.get('data')
  if data is None:
    raise manifest.StageError(
      f'{name} continues the data of {given.name}, which was not trained here: set '
      'continue_data = False'
    )
  here, there = order | {'data_seed': data_seed}, data.get('order', {}) | data
  wrong = [
    f'{key} is {there.get(key)!r} there and {here.get(key)!r} here'
    for key in sorted(here.keys() | data.get('order', {}).keys())
    if there.get(key) != here.get(key)
  ]
  if wrong:
    raise manifest.StageError(
      f'{name} continues the data of {given.name}, whose examples came in another order: '
      f'{"; ".join(wrong)}. Give both the same, or set continue_data = False'
    )
  return data['example']

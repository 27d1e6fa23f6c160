"""The step of an arm, compiled for a mesh: what training runs and `precompile` measures."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses

import jax
from jax.sharding import AbstractMesh, Mesh
import optax

from instructretro_jax.array_types import Array, Batch
from instructretro_jax.model.config import RetroConfig
from instructretro_jax.model.execution import Execution
from instructretro_jax.model.retro import Retro
from instructretro_jax.train.optimizer import Optimizer
from instructretro_jax.train.state import abstract_params, abstract_state, shardings_of
from instructretro_jax.train.step import TrainState, make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledStep:
  """One step of training.

  Attributes:
    function: jitted; the state it is given is used up.
    state: shapes, dtypes and shardings of the state that it takes and returns.
  """

  function: Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]
  state: TrainState
  optimizer: optax.GradientTransformation


def compile_step(
  model: RetroConfig,
  execution: Execution,
  optimizer: Optimizer,
  mesh: Mesh | AbstractMesh,
  *,
  num_steps: int,
  with_retrieval: bool,
  gate: float | str,
  num_microbatches: int,
  warmup_of: int | None = None,
) -> CompiledStep:
  """The step on a mesh, which may be one of chips that are not here; compiled at its first call."""
  params = abstract_params(model, with_retrieval, mesh, scan_layers=execution.scan_layers)
  state, transformation = abstract_state(params, optimizer, num_steps, warmup_of)
  step = make_train_step(Retro(model, execution), transformation, gate, num_microbatches)
  # moments keep their places, whatever the compiler would choose
  places = (shardings_of(state), None)
  function = jax.jit(step, donate_argnums=0, out_shardings=places)
  return CompiledStep(function=function, state=state, optimizer=transformation)

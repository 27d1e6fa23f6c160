"""Held-out losses of an arm while it trains, the best of them, and when that is long ago."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from instructretro_jax.array_types import Array, Batch
from instructretro_jax.examples.heldout import heldout_batches, parts
from instructretro_jax.examples.tasks import LanguageModel
from instructretro_jax.model.retro import Retro
from instructretro_jax.model.sharding import local_rows, put_batch
from instructretro_jax.train.step import TrainState, losses_of_batch

PREFIX = 'heldout/'  # and a kind of neighbours: a metric, nats a token


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
  """The held-out loss every so many steps: with own neighbours, with none, and with random ones.

  Attributes:
    task: the sequences, with their neighbours where the arm has an encoder.
    every: steps from one evaluation to the next; the last step has one too.
    num_sequences: spread evenly over the split, the same each time.
    patience: the arm ends when so many evaluations in a row were no better than the best before, by
      the loss with own neighbours, or with none where there are none; None: it never does.
    seed: of the random neighbours.
  """

  task: LanguageModel
  every: int = 100
  num_sequences: int = 32
  patience: int | None = None
  seed: int = 0

  @property
  def only_how(self) -> frozenset[str]:
    """All, unless it decides when the arm ends."""
    names = {field.name for field in dataclasses.fields(self)}
    return frozenset(names if self.patience is None else ())

  def is_due(self, step: int, num_steps: int) -> bool:
    """Whether a step has an evaluation."""
    return step % self.every == 0 or step == num_steps


class History:
  """The losses that decide which step is the best: [step, nats] each, in order."""

  def __init__(self, rows: list[list[float]], patience: int | None):
    self.rows, self._patience = rows, patience

  def add(self, step: int, losses: dict[str, float]) -> None:
    """Notes an evaluation."""
    self.rows.append([step, losses[PREFIX + ('own' if PREFIX + 'own' in losses else 'off')]])

  @property
  def best(self) -> list[float] | None:
    """The first of the lowest; None without an evaluation."""
    return min(self.rows, key=lambda row: row[1], default=None)

  def at(self, step: int) -> float | None:
    """The loss of a step; None if it was not measured."""
    return next((nats for n, nats in self.rows if n == step), None)

  @property
  def has_ended(self) -> bool:
    """Whether the best is longer ago than there is patience."""
    if self._patience is None or self.best is None:
      return False
    return len(self.rows) - 1 - self.rows.index(self.best) >= self._patience


class Evaluator:
  """Computes held-out losses of a state in the shapes and on the mesh of training.

  Args:
    model: as it trains.
    has_encoder: whether there is more than one kind of neighbours.
  """

  def __init__(
    self,
    heldout: HeldOut,
    root: Path,
    model: Retro,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    has_encoder: bool,
  ):
    kinds = heldout_batches(heldout.task, root, heldout.num_sequences, heldout.seed)
    self._kinds = kinds if has_encoder else {'off': kinds['off']}
    self._model, self._mesh, self._batch_size = model, mesh, batch_size
    self._rows = local_rows(mesh, batch_size)

  def losses(self, state: TrainState) -> dict[str, float]:
    """Nats a target token by kind of neighbours, as metrics."""
    found = {}
    for kind, arrays in self._kinds.items():
      is_open = kind != 'off'
      run, sums = _compiled(self._model, float(is_open)), np.zeros(2)
      for part in parts(arrays, self._batch_size, is_open, self._rows):
        sums += np.asarray(run(state, put_batch(part, self._mesh, self._batch_size)), np.float64)
      found[PREFIX + kind] = float(sums[0] / sums[1])
    return found


@functools.lru_cache(maxsize=4)
def _compiled(model: Retro, gate: float) -> Callable[[TrainState, Batch], Array]:
  def sums(state: TrainState, batch: Batch) -> Array:
    nats_BL = losses_of_batch(model, state.params, batch, gate)
    return jnp.stack([nats_BL.sum(), batch['loss_mask'].sum()])

  return jax.jit(sums)

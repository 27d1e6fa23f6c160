"""Held-out losses of an arm while it trains, the best of them, and when that is long ago."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from instructretro_jax.array_types import Array, Batch
from instructretro_jax.examples.heldout import heldout_batches
from instructretro_jax.examples.tasks import LanguageModel
from instructretro_jax.model.retro import Retro
from instructretro_jax.model.sharding import local_rows, put_batch
from instructretro_jax.train.step import TrainState, losses_of_batch

PREFIX = 'heldout/'  # and a kind of neighbours: a metric, nats a token
_ARRAYS = ('tokens', 'targets', 'loss_mask', 'segments')
_NEIGHBOURS = ('neighbours', 'neighbour_mask')


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

  def losses(self, state: TrainState) -> dict[str, float]:
    """Nats a target token by kind of neighbours, as metrics."""
    found = {}
    for kind, arrays in self._kinds.items():
      run = _compiled(self._model, float(kind != 'off'))
      names = _ARRAYS + (_NEIGHBOURS if kind != 'off' else ())
      sums = np.zeros(2)
      for part in self._parts({name: arrays[name] for name in names}):
        sums += np.asarray(run(state, part), np.float64)
      found[PREFIX + kind] = float(sums[0] / sums[1])
    return found

  def _parts(self, arrays: dict[str, np.ndarray]) -> Iterator[Batch]:
    """Batches on the mesh; the last is filled up with rows that count for nothing."""
    total, rows = len(arrays['tokens']), local_rows(self._mesh, self._batch_size)
    for start in range(0, total, self._batch_size):
      places = start + rows
      part = {name: array[np.minimum(places, total - 1)] for name, array in arrays.items()}
      part['loss_mask'] = part['loss_mask'] * (places < total)[:, None].astype(np.float32)
      yield put_batch(part, self._mesh, self._batch_size)


@functools.lru_cache(maxsize=4)
def _compiled(model: Retro, gate: float) -> Callable[[TrainState, Batch], Array]:
  def sums(state: TrainState, batch: Batch) -> Array:
    nats_BL = losses_of_batch(model, state.params, batch, gate)
    return jnp.stack([nats_BL.sum(), batch['loss_mask'].sum()])

  return jax.jit(sums)

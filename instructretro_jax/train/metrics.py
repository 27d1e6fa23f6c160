"""What training says of itself: metrics.jsonl, TensorBoard and a progress bar."""

from __future__ import annotations

from collections.abc import Mapping
import json
import math
from pathlib import Path
import time

import optax
import tensorboardX
from tensorboardX.summary import hparams

from instructretro_jax.array_types import Array
from instructretro_jax.pipeline import manifest, settings
from instructretro_jax.pipeline.growing import GrowingFiles
from instructretro_jax.pipeline.progress import Bar
from instructretro_jax.train.finite import not_finite
from instructretro_jax.train.step import PART_NORM, TrainState

METRICS = 'metrics.jsonl'
_COPY_SECS = 60.0  # from one copy to a store to the next, where no checkpoint is written


class TrainLog:
  """Metrics of an arm, one step behind the device. Every process reads them, process 0 writes.

  Args:
    folder: logs of the arm; rows of steps after `first_step` are dropped.
    rates: the learning rate by step.
    secs_at_peak: of a step at full model-FLOP utilisation; None logs no utilisation.
    is_writer: whether this process writes.
  """

  def __init__(
    self,
    folder: Path,
    name: str,
    *,
    first_step: int,
    num_steps: int,
    rates: optax.Schedule,
    secs_at_peak: float | None = None,
    is_writer: bool = True,
  ):
    self.name = name
    self._folder, self._rates, self._is_writer = folder, rates, is_writer
    self._secs_at_peak = secs_at_peak
    self._pending: tuple[int, Mapping[str, Array]] | None = None
    self._clock = time.monotonic()
    self._last_good = first_step  # of a checkpoint; 0 where there is none
    self._waited = 0.0  # seconds, for checkpoints
    if is_writer:
      self._files = GrowingFiles(folder, goes_on=(METRICS,))
      self._path = self._files.here / METRICS
      self._drop_after(first_step)
      self._writer = tensorboardX.SummaryWriter(
        str(self._files.here / 'tensorboard'), purge_step=first_step + 1
      )
      self._write_hyperparameters()
      self._bar = Bar(total=num_steps, initial=first_step, desc=name, unit='step', mininterval=2)

  def add(self, step: int, metrics: Mapping[str, Array]) -> None:
    """Notes a dispatched step and writes the one before it.

    Raises StageError, on every process, if loss or gradient of that one is not finite.
    """
    self._write()
    self._pending = (step, metrics)

  def add_to_last(self, metrics: Mapping[str, float]) -> None:
    """More of the step that was noted last."""
    assert self._pending is not None
    step, before = self._pending
    self._pending = (step, {**before, **metrics})

  def flush(self, state: TrainState) -> None:
    """Writes the last step; what came of it may then be saved, and named good.

    Raises StageError, on every process, if the state is not finite.
    """
    self._write()
    step = self._pending[0] if self._pending else self._last_good
    self._pending = None
    if (wrong := not_finite(state)) is not None:
      raise self._diverged(f'the update of step {step} made {wrong} not finite')
    if self._is_writer:
      self._writer.flush()
      self._files.push()

  def saved(self, step: int, secs: float) -> None:
    """Names a checkpoint good, for which training has waited so long."""
    self._last_good = step
    self._waited += secs

  def close(self) -> None:
    """Ends the bar and the curves."""
    if self._is_writer:
      self._bar.close()
      self._writer.close()
      self._files.close()

  def _diverged(self, what: str) -> manifest.StageError:
    good = f'step {self._last_good}' if self._last_good else 'none'
    return manifest.StageError(
      f'{self.name}: {what}. Last good checkpoint: {good}, '
      f'in {self._folder.parent / "checkpoints"}. Lower the learning rate and train again '
      f'with --rebuild={self.name}.'
    )

  def _drop_after(self, step: int) -> None:
    if self._path.exists():
      rows = [line for line in self._path.read_text().splitlines() if line.endswith('}')]
      kept = [line for line in rows if json.loads(line)['step'] <= step]
      manifest.write_text(self._path, ''.join(line + '\n' for line in kept))

  def _write_hyperparameters(self) -> None:
    """For the page HPARAMS of TensorBoard, which finds its columns and metrics by itself."""
    asked = settings.hyperparameters(self._folder.parent)
    _, session, _ = hparams(asked, {})
    self._writer.file_writer.add_summary(session)

  def _write(self) -> None:
    if self._pending is None:
      return
    step, metrics = self._pending
    values = {name: float(x) for name, x in metrics.items()}
    if wrong := [name for name, value in values.items() if not math.isfinite(value)]:
      first = f'the {_in_words(wrong[0])} of step {step} is {values[wrong[0]]}'
      parts = [name.removeprefix(PART_NORM) for name in wrong if name.startswith(PART_NORM)]
      raise self._diverged(first + (f' (gradients of {", ".join(parts)})' if parts else ''))
    if not self._is_writer:
      return
    now = time.monotonic()
    secs, self._clock = max(1e-9, now - self._clock), now
    values['learning_rate'] = float(self._rates(step - 1))
    values['tokens_per_s'] = round(values.pop('tokens') / secs, 1)
    if self._secs_at_peak is not None:
      values['mfu'] = round(self._secs_at_peak / secs, 4)
    if self._waited:
      values['checkpoint_s'], self._waited = round(self._waited, 3), 0.0
    with self._path.open('a') as file:
      file.write(json.dumps({'step': step, **values}, allow_nan=False) + '\n')
    for name, value in values.items():
      self._writer.add_scalar(name, value, step)
    self._files.push(_COPY_SECS)
    self._bar.update(1)
    self._bar.set_postfix(
      loss=f'{values["loss"]:.3f}', tokens_per_s=f'{values["tokens_per_s"]:.0f}', refresh=False
    )


def _in_words(metric: str) -> str:
  return 'norm of the gradient' if metric.startswith('grad_norm') else metric

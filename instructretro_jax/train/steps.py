"""The steps of an arm: what happens after each, and where it ends before its time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
import time
from typing import Any

from instructretro_jax.array_types import Batch
from instructretro_jax.pipeline.hosts import Preempted
from instructretro_jax.train import preemption
from instructretro_jax.train.metrics import TrainLog
from instructretro_jax.train.profile import Profile
from instructretro_jax.train.step import TrainState


def take_steps(
  state: TrainState,
  function: Callable[[TrainState, Batch], tuple[TrainState, Any]],
  batches: Iterable[Batch],
  *,
  num_steps: int,
  checkpoint_every: int,
  save: Callable[[TrainState, int], None],
  log: TrainLog,
  profile: Profile,
  evaluate: Callable[[TrainState, int], dict[str, float]],
  has_ended: Callable[[], bool],
) -> TrainState:
  """The state after the last step; `batches` are those of the steps that are left.

  Args:
    function: takes a step, and uses the state up.
    save: begins to save the state of a step.
    evaluate: the metrics that a step has besides.
    has_ended: whether they say that more steps are of no use; the state is then saved.

  Raises Preempted, with the state saved, where this machine, or another of the run, is taken away.
  """
  done = int(state.step)
  if has_ended():
    return state
  with preemption.watched_for() as is_preempted:
    for n, batch in enumerate(batches, start=done + 1):
      with profile.step(n):
        state, metrics = function(state, batch)
      profile.end(n, state)
      log.add(n, metrics)
      log.add_to_last(evaluate(state, n))
      is_last = n == num_steps or has_ended()
      ends_early = is_preempted(n) and not is_last
      if ends_early or is_last or n % checkpoint_every == 0:
        log.flush(state)
        began = time.monotonic()
        save(state, n)
        log.saved(n, time.monotonic() - began)
      if ends_early:
        raise Preempted(
          f'{log.name}: a machine of this run is taken away: step {n} of {num_steps} is saved; the '
          'same command goes on from there'
        )
      if is_last:
        break
  return state

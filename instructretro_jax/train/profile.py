"""A trace of some steps, for XProf and Perfetto."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
from pathlib import Path

import jax

from instructretro_jax.pipeline.growing import GrowingFiles
from instructretro_jax.pipeline.notes import note


class Profile:
  """Traces steps of an arm from the first to the last of a range, both included.

  Args:
    steps: the range; None: no trace.
    folder: where the trace is written, by every process that of its own devices.
    done: steps that were taken before.
  """

  def __init__(self, steps: tuple[int, int] | None, folder: Path, done: int, num_steps: int):
    self._first, self._last = steps or (0, 0)
    self._folder, self._is_on = folder, False
    if steps and not done < self._first <= self._last <= num_steps:
      note(f'no trace: steps {self._first} to {self._last} are not among {done + 1} to {num_steps}')
      self._first = 0

  @contextlib.contextmanager
  def step(self, n: int) -> Iterator[None]:
    """Around the dispatch of step `n`."""
    if n == self._first:
      self._files = GrowingFiles(self._folder)
      jax.profiler.start_trace(str(self._files.here), create_perfetto_trace=True)
      self._is_on = True
    with jax.profiler.StepTraceAnnotation('train', step_num=n):
      yield

  def end(self, n: int, result: object) -> None:
    """After the dispatch of step `n`, whose result is awaited if it is the last of the trace."""
    if self._is_on and n == self._last:
      jax.block_until_ready(result)
      jax.profiler.stop_trace()
      self._files.close()
      self._is_on = False
      note(f'the trace of steps {self._first} to {self._last} is in {self._folder}')

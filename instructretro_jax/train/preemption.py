"""A machine that is taken away says so before, by SIGTERM: training saves, and ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import signal
import threading

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def watched_for() -> Iterator[Callable[[int], bool]]:
  """Gives a function of the step: whether to save now and end.

  Of several processes all must ask after each step; they are told at the same one, whichever of
  them had the signal. Outside of it, SIGTERM ends a process at once.
  """
  if jax.process_count() > 1:
    yield multihost_utils.reached_preemption_sync_point  # JAX itself listens to the signal
    return
  if threading.current_thread() is not threading.main_thread():
    yield lambda step: False  # signals go to the main thread
    return
  told = threading.Event()
  before = signal.signal(signal.SIGTERM, lambda *_: told.set())
  try:
    yield lambda step: told.is_set()
  finally:
    signal.signal(signal.SIGTERM, before)

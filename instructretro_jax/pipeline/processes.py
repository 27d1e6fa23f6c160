"""Processes that this one starts, waits for, and passes its signals on to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
from pathlib import Path
import re
import signal
import subprocess
import threading

from instructretro_jax.pipeline.growing import GrowingFiles

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Processes:
  """Those that run now. Once stopped, it starts no more; threads may share it."""

  def __init__(self):
    self._running: set[subprocess.Popen] = set()
    self._lock = threading.RLock()  # a signal may come while another is being passed on
    self.stopped_by: int | None = None  # a signal

  @contextlib.contextmanager
  def passing_signals_on(self) -> Iterator[None]:
    """SIGINT and SIGTERM stop the processes, not this one. For the main thread."""
    before = {one: signal.signal(one, lambda number, _: self.stop(number)) for one in _SIGNALS}
    try:
      yield
    finally:
      for one, handler in before.items():
        signal.signal(one, handler)

  def stop(self, number: int) -> None:
    """Sends a signal to all that run."""
    with self._lock:
      self.stopped_by = self.stopped_by or number
      for process in self._running:
        process.send_signal(number)

  def run(self, command: Sequence[str], stderr: Path, on_line: Callable[[str], None]) -> int | None:
    """Starts a process and waits for it; its exit status, or None if it was not started.

    Args:
      stderr: file that is written anew with what the process says there.
      on_line: is given each line of its stdout as it comes.
    """
    files = GrowingFiles(stderr.parent)
    with (files.here / stderr.name).open('wb') as errors, self._lock:
      if self.stopped_by is not None:
        return None
      process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        encoding='utf-8',
        errors='replace',
        start_new_session=True,  # Ctrl-C of a terminal reaches it through `stop` alone, once
      )
      self._running.add(process)
    with process:
      for line in process.stdout or ():
        on_line(line.rstrip('\n'))
    files.close()
    with self._lock:
      self._running.remove(process)
    return process.returncode


def last_line(path: Path) -> str:
  """The last line of a file that is not blank; where bars are redrawn, as they stood last."""
  lines = re.split(r'[\r\n]+', path.read_text(encoding='utf-8', errors='replace'))
  return next((line.strip() for line in reversed(lines) if line.strip()), '')

"""Progress bars: one line that is redrawn on a terminal, a line now and then in a log file."""

from __future__ import annotations

from collections.abc import Iterable
import re
import sys
from typing import Any, TextIO

import tqdm

_LOG_SECS = 10.0  # between two lines of a log file
_LOG_FORMAT = (
  '{desc}: {percentage:.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]'
)
_MOVES = re.compile(r'\x1b\[A|[\r\n]')  # how tqdm goes to the place of a bar


class Bar(tqdm.tqdm):
  """A tqdm bar, with its arguments. What is not a terminal gets whole lines, the last one always.

  A bar with `leave=False` that ends within 10 s leaves no line.
  """

  def __init__(self, iterable: Iterable[Any] | None = None, **kwargs: Any):
    file = kwargs.pop('file', None) or sys.stderr
    self._is_log = not file.isatty()
    if self._is_log:
      kwargs |= {'mininterval': _LOG_SECS, 'miniters': 1}
      file = _LogFile(file)
    self._shown = kwargs.get('initial', 0)
    super().__init__(iterable, file=file, **kwargs)

  def display(self, msg: str | None = None, pos: int | None = None) -> None:
    """Redraws the line, or prints another."""
    if self._is_log and msg is None:
      if self.n == self._shown:
        return
      self._shown = self.n
      self.bar_format = _LOG_FORMAT if self.total else None
    super().display(msg, pos)


class _LogFile:
  """Takes what tqdm draws and writes each state of a bar as a line."""

  def __init__(self, file: TextIO):
    self._file = file
    self.encoding = getattr(file, 'encoding', 'utf-8')

  def write(self, text: str) -> None:
    if line := _MOVES.sub('', text).strip():
      self._file.write(line + '\n')

  def flush(self) -> None:
    self._file.flush()

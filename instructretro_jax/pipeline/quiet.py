"""Keeps off the terminal what libraries print and a user can do nothing about; the rest stays."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import logging
import os
import subprocess
import sys
import warnings

# parts of messages, by the logger that they come from
_POINTLESS = {
  'absl': (
    '_CHECKPOINT_METADATA',  # Orbax looks for a file that only some of its writers make
    'ArrayMetadata persistence is disabled',  # of weights that were on no device
  ),
  'root': ('apitools not found',),  # Beam greets so where Google's cloud is not installed
}
_NATIVE_NOTES = r'^[IW][0-9]{4} |^WARNING: All log messages before absl::InitializeLog'


def quieten() -> None:
  """For this process; call it before JAX or TensorFlow is imported. A warning is then one line."""
  import absl.logging  # noqa: F401  it makes the logger 'absl', of a class of its own

  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # errors only: not its notes on the CPU
  logging.getLogger('gcsfs').setLevel(logging.CRITICAL)  # tracebacks of what it tries again
  for name in _POINTLESS:
    logging.getLogger(None if name == 'root' else name).addFilter(_says_something)
  warnings.formatwarning = lambda message, category, filename, line_number, line=None: (
    f'{category.__name__}: {message} ({filename}:{line_number})\n'
  )


def _says_something(record: logging.LogRecord) -> bool:
  return not any(part in record.getMessage() for part in _POINTLESS[record.name])


@contextlib.contextmanager
def without_native_notes() -> Iterator[None]:
  """Drops what C++ logs by absl while this is open, but for errors, which pass as all else does.

  absl cannot be told from outside. The filter is a process of its own, so that the last words of
  a library that aborts this one pass too.
  """
  sys.stderr.flush()
  stderr = os.dup(2)
  command = ['grep', '--line-buffered', '-Ev', _NATIVE_NOTES]
  try:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stderr) as grep:
      assert grep.stdin is not None
      os.dup2(grep.stdin.fileno(), 2)
      try:
        yield
      finally:
        os.dup2(stderr, 2)
  finally:
    os.close(stderr)

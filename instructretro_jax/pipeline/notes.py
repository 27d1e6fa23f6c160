"""Notes: a line for the user about what a stage has found, beside the bars."""

from __future__ import annotations

import sys

import tqdm


def note(text: str) -> None:
  """Prints a line on stderr; a bar that is being drawn stays below it."""
  tqdm.tqdm.write(text, file=sys.stderr)

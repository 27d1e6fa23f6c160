"""Paths as options of commands: a tilde is the home folder, behind `=` too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class UserPath(click.Path):
  """As click.Path, with the tilde expanded; gives a `Path`."""

  def __init__(self, **kwargs: Any):
    super().__init__(path_type=Path, **kwargs)

  def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
    """Raises a usage error for what the checks of click.Path refuse."""
    return super().convert(Path(value).expanduser(), param, ctx)


FOLDER = UserPath(file_okay=False)
EXISTING_FOLDER = UserPath(exists=True, file_okay=False)
EXISTING_FILE = UserPath(exists=True, dir_okay=False)
EXISTING = UserPath(exists=True)
ANY = UserPath()

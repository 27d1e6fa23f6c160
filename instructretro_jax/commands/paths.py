"""Paths as options of commands: a tilde is the home folder, behind `=` too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from instructretro_jax.pipeline.manifest import in_words
from instructretro_jax.pipeline.paths import is_remote, to_path


class UserPath(click.Path):
  """As click.Path, with the tilde expanded, or an address in a store; gives a `Path`."""

  def __init__(self, **kwargs: Any):
    super().__init__(path_type=Path, **kwargs)

  def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
    """Raises a usage error for what the checks of click.Path refuse."""
    try:
      path = to_path(value)
    except OSError as error:
      self.fail(in_words(error), param, ctx)
    if not is_remote(path):
      return super().convert(path, param, ctx)
    if self.exists and not path.exists():
      self.fail(f'{path} does not exist', param, ctx)
    return path


FOLDER = UserPath(file_okay=False)
EXISTING_FOLDER = UserPath(exists=True, file_okay=False)
EXISTING_FILE = UserPath(exists=True, dir_okay=False)
EXISTING = UserPath(exists=True)
ANY = UserPath()

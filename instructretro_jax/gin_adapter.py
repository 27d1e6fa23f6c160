"""The one place that knows gin: files and overrides in, a configured object out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
import re
from typing import TypeVar

import gin
from instructretro_jax import manifest

T = TypeVar('T')

REPOSITORY = Path(__file__).resolve().parent.parent  # where `include 'gin/...'` is found


def configure(
  function: Callable[..., T], files: Sequence[str], bindings: Sequence[str] = ()
) -> tuple[T, str]:
  """Calls `function` with the arguments that gin files and overrides give it.

  Args:
    function: an importable function or class of this package; files name it by module.
    files: gin files, later ones override earlier ones.
    bindings: overrides such as "NUM_STEPS = 10", applied last.

  Returns: what `function` returns, and the operative configuration, which alone re-creates it.
  Raises StageError for a file that is not there, a gin error, or a macro that nothing uses.
  """
  with gin.unlock_config():
    gin.clear_config()
  gin.add_config_file_search_path(str(REPOSITORY))
  name = f'{function.__module__}.{function.__qualname__}'
  try:
    gin.parse_config_files_and_bindings(list(files), list(bindings), finalize_config=False)
    configured = gin.get_configurable(function)
    _check_macros()
    return configured(), gin.operative_config_str()
  except (
    ValueError,
    RuntimeError,
    OSError,
    SyntaxError,
    TypeError,
    AttributeError,
    ImportError,
  ) as error:
    if isinstance(error, manifest.StageError):
      raise
    raise manifest.StageError(f'configuring {name} from {list(files)}: {error}') from error


def _check_macros() -> None:
  """Gin itself accepts a macro that nothing uses, and one that was never given a value."""
  text = gin.config_str()
  values = dict(re.findall(r'^([A-Z][A-Z0-9_]*) = (.*)', text, flags=re.MULTILINE))
  used = set(re.findall(r'%([A-Za-z0-9_.]+)', text))
  if unused := sorted(set(values) - used):
    raise manifest.StageError(
      f'macros set but used nowhere (misspelt?): {unused}; those in use: {sorted(used)}'
    )
  if missing := sorted(name for name, value in values.items() if value == '%gin.REQUIRED'):
    raise manifest.StageError(
      f'values that the experiment must choose: {missing}; give each as --gin.NAME=VALUE'
    )

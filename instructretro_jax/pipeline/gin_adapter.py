"""The one place that knows gin: files and overrides in, a configured object out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
import re
from typing import TypeVar

import gin
from instructretro_jax.pipeline import manifest

T = TypeVar('T')

REPOSITORY = Path(__file__).resolve().parents[2]  # where `include 'gin/...'` is found


def configure(
  function: Callable[..., T],
  files: Sequence[str],
  bindings: Sequence[str] = (),
  placeholder: str | None = None,
) -> tuple[T, str]:
  """Calls `function` with the arguments that gin files and overrides give it.

  Args:
    function: an importable function or class of this package; files name it by module.
    files: gin files, later ones override earlier ones.
    bindings: overrides such as "NUM_STEPS = 10", applied last.
    placeholder: value of all macros that the experiment must still choose, where nothing is run.

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
    if placeholder is not None:
      gin.parse_config([f'{name} = {placeholder!r}' for name in _missing_macros()])
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


def _macro_values() -> dict[str, str]:
  return dict(re.findall(r'^([A-Z][A-Z0-9_]*) = (.*)', gin.config_str(), flags=re.MULTILINE))


def _missing_macros() -> list[str]:
  return sorted(name for name, value in _macro_values().items() if value == '%gin.REQUIRED')


def _check_macros() -> None:
  """Gin itself accepts a macro that nothing uses, and one that was never given a value."""
  text, values = gin.config_str(), _macro_values()
  used = set(re.findall(r'%([A-Za-z0-9_.]+)', text))
  if unused := sorted(set(values) - used):
    raise manifest.StageError(
      f'macros set but used nowhere (misspelt?): {unused}; those in use: {sorted(used)}'
    )
  if missing := _missing_macros():
    raise manifest.StageError(
      f'values that the experiment must choose: {missing}; give each as --gin.NAME=VALUE'
    )

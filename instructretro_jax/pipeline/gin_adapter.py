"""The one place that knows gin: files and overrides in, a configured object out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
import re
import tokenize
from typing import TextIO, TypeVar

import gin
from instructretro_jax.pipeline import manifest
from instructretro_jax.pipeline.fields import wrong_fields
from instructretro_jax.pipeline.paths import is_remote, to_path

T = TypeVar('T')

_PACKAGE = Path(__file__).resolve().parents[1]
# holds gin/ and experiments/: a folder of the installed package, or the root of a checkout
SHIPPED = _PACKAGE / 'configs' if (_PACKAGE / 'configs').is_dir() else _PACKAGE.parent

_MOST_SHOWN = 5  # wrong fields

# Begins the value of a macro that says which file is missing. Macros that refer to it are those
# which that file gives: SIZE = 'REQUIRED: ...', BATCH_SIZE = %SIZE.
_HINT = 'REQUIRED: '

# folders of the files given so far, the last one first; None outside of `configure`
_GIVEN: ContextVar[tuple[Path, ...] | None] = ContextVar('folders of the files given', default=None)


def configure(
  function: Callable[..., T],
  files: Sequence[str],
  bindings: Sequence[str] = (),
  placeholder: str | None = None,
) -> tuple[T, str]:
  """Calls `function` with the arguments that gin files and overrides give it.

  A file, given or included, is looked for in the working folder, then in the folder of the file
  given (of several, the last one read first), then in the configuration that the package ships.

  Args:
    function: an importable function or class of this package; files name it by module.
    files: gin files, later ones override earlier ones.
    bindings: overrides such as "NUM_STEPS = 10", applied last.
    placeholder: value of all macros that the experiment must still choose, where nothing is run;
      those that a further file gives are not among them.

  Returns: what `function` returns, and the operative configuration, which alone re-creates it.
  Raises StageError for a file that is not there, a gin error, or a macro that nothing uses.
  """
  with gin.unlock_config():
    gin.clear_config()
  name = f'{function.__module__}.{function.__qualname__}'
  try:
    _parse(files, bindings)
    configured = gin.get_configurable(function)
    if placeholder is not None:
      gin.parse_config([f'{name} = {placeholder!r}' for name in _missing_macros()[0]])
    _check_macros()
    made = configured()
    if wrong := list(wrong_fields(made, function.__name__)):
      raise manifest.StageError('; '.join(wrong[:_MOST_SHOWN]))
    return made, gin.operative_config_str()
  except manifest.StageError as error:  # gin adds a line for each function that it was called by
    raise manifest.StageError(str(error).partition('\n')[0]) from error
  except (
    ValueError,
    RuntimeError,
    OSError,
    SyntaxError,
    TypeError,
    AttributeError,
    ImportError,
    NameError,
    LookupError,
    tokenize.TokenError,
  ) as error:
    said = ' '.join(str(error).split())
    raise manifest.StageError(f'configuring {name} from {list(files)}: {said}') from error


def _parse(files: Sequence[str], bindings: Sequence[str]) -> None:
  before = _GIVEN.set(())
  try:
    for name in files:
      path = _find(name)
      _GIVEN.set((path.parent, *_GIVEN.get()))
      gin.parse_config_file(str(path))
    for binding in bindings:
      _override(binding)
  except manifest.StageError as error:  # gin adds lines that quote the include
    raise manifest.StageError(' '.join(str(error).split())) from error
  finally:
    _GIVEN.reset(before)


def _override(binding: str) -> None:
  """Applies 'NAME = VALUE'. Raises StageError for text without the quotes of gin."""
  try:
    gin.parse_config(binding)
  except (SyntaxError, ValueError, NameError, tokenize.TokenError) as error:
    if isinstance(error, ValueError) and 'malformed' not in str(error):
      raise
    name, _, value = binding.partition(' = ')
    raise manifest.StageError(
      f'{value!r} is no value of gin; if {name} is text, write --gin.{name}=\'"{value}"\''
    ) from error


def _find(name: str) -> Path:
  """The first file of that name in the folders searched. Raises StageError if there is none."""
  folders = [Path(), *_GIVEN.get(), SHIPPED]
  path = to_path(name)
  is_whole = is_remote(path) or path.is_absolute()
  for place in [path] if is_whole else [folder / path for folder in folders]:
    if place.is_file():
      return place
  if is_whole:
    raise manifest.StageError(f'there is no file {name}')
  looked_in = ', '.join(dict.fromkeys(str(folder.resolve()) for folder in folders))
  raise manifest.StageError(f'{name} is in none of the folders searched: {looked_in}')


def _open(name: str) -> TextIO:
  return _find(name).open()


# Right behind the plain `open`. Gin's own search comes before readers that are registered, and
# breaks on folders of the Python path that are named as that of an included file; its search path
# would outlive the call of `configure`.
gin.config._FILE_READERS.insert(1, (_open, lambda name: _GIVEN.get() is not None))


def _config_str() -> str:
  # a statement a line; gin also draws lines of that length, so that more would take seconds
  return gin.config_str(max_line_length=20_000)


def _macro_values() -> dict[str, str]:
  return dict(re.findall(r'^([A-Z][A-Z0-9_]*) = (.*)', _config_str(), flags=re.MULTILINE))


def _hints() -> dict[str, str]:
  """Macros that say which file is missing, and what they say."""
  values = {name: value.strip('\'"') for name, value in _macro_values().items()}
  return {n: value.removeprefix(_HINT) for n, value in values.items() if value.startswith(_HINT)}


def _missing_macros() -> tuple[list[str], dict[str, list[str]]]:
  """Macros without a value: those to be chosen one by one, and those of a missing file by hint."""
  values = sorted(_macro_values().items())
  one_by_one = [name for name, value in values if value == '%gin.REQUIRED']
  of_a_file = {
    hint: [name for name, value in values if value == f'%{macro}']
    for macro, hint in _hints().items()
  }
  return one_by_one, {hint: names for hint, names in of_a_file.items() if names}


def _check_macros() -> None:
  """Gin itself accepts a macro that nothing uses, and one that was never given a value."""
  used = set(re.findall(r'%([A-Za-z0-9_.]+)', _config_str()))
  if unused := sorted(set(_macro_values()) - set(_hints()) - used):
    raise manifest.StageError(
      f'macros set but used nowhere (misspelt?): {unused}; those in use: {sorted(used)}'
    )
  one_by_one, of_a_file = _missing_macros()
  wanted = [f'{names}, which come with {hint}' for hint, names in of_a_file.items()]
  if one_by_one:
    wanted.append(f'{one_by_one}; give each as --gin.NAME=VALUE')
  if wanted:
    raise manifest.StageError(f'values that the experiment must choose: {"; ".join(wanted)}')

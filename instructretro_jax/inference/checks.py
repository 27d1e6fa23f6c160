"""One check of what is asked, from wherever it comes: each value is of the kind of its field."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
import math
import numbers
import reprlib
import types
import typing
from typing import Any

_WORDS = {
  str: 'a text', bool: 'true or false', int: 'a whole number', float: 'a finite number'
}  # fmt: skip


def check_kinds(record: Any) -> None:
  """Raises ValueError if a field of a dataclass is not what its annotation says.

  A bool is no number, 5.0 no whole number, a string no tuple of texts; numbers are finite, and
  texts have no half characters.
  """
  for name, hint in _hints(type(record)).items():
    value = getattr(record, name)
    if not _is_of(value, hint):
      raise ValueError(f'{name}={reprlib.repr(value)} is not {_in_words(hint)}')
    for text in [value] if isinstance(value, str) else value if isinstance(value, tuple) else ():
      if isinstance(text, str):
        _check_whole(name, text)


def from_json(kind: type, row: Mapping[str, Any], also: tuple[str, ...] = ()) -> dict[str, Any]:
  """The fields of a dataclass that a JSON object gives: null is none, a list a tuple.

  A string where a tuple of texts is meant is one text. The kinds are checked by the dataclass.

  Args:
    also: names that are allowed beside the fields, for the error.

  Raises ValueError for names that are no fields.
  """
  hints = _hints(kind)
  if unknown := sorted(row.keys() - hints.keys()):
    raise ValueError(f'{unknown} is unknown; there are {sorted({*hints, *also})}')
  return {name: as_field(hints[name], value) for name, value in row.items() if value is not None}


def as_field(hint: Any, value: Any) -> Any:
  """A JSON value as a field of this annotation has it, if it can be that."""
  if isinstance(value, list):
    return tuple(value)
  is_listed = isinstance(value, str) and not _is_of('', hint)
  return (value,) if is_listed and _is_of((value,), hint) else value


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
  hints = typing.get_type_hints(kind)
  return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _is_of(value: Any, hint: Any) -> bool:
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return any(_is_of(value, one) for one in typing.get_args(hint))
  if typing.get_origin(hint) is tuple:
    (kind, *_) = typing.get_args(hint)
    return isinstance(value, tuple) and all(_is_of(one, kind) for one in value)
  if hint not in (int, float):
    return isinstance(value, hint)
  if isinstance(value, bool):
    return False
  if hint is int:
    return isinstance(value, numbers.Integral)
  return isinstance(value, numbers.Real) and _is_finite(value)


def _is_finite(value: Any) -> bool:
  try:
    return math.isfinite(float(value))
  except OverflowError:  # a whole number that no float can hold
    return False


def _in_words(hint: Any) -> str:
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return ' or '.join(_in_words(one) for one in typing.get_args(hint) if one is not type(None))
  if typing.get_origin(hint) is tuple:
    return f'a list of {"texts" if typing.get_args(hint)[0] is str else "tokens"}'
  return _WORDS.get(hint, hint.__name__)


def _check_whole(name: str, text: str) -> None:
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f'{name}: character {error.start} is half a character, which no text can hold'
    ) from error

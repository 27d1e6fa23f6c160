"""Configurations as JSON and back, and what of them decides results apart from how they are got.

A dataclass may list, as `only_how`, fields that decide nothing but how it is computed, in what
pieces and where, or what is said of it: results may differ by them in rounding alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
from pathlib import Path
import types
import typing
from typing import Any, TypeVar

from instructretro_jax.pipeline.manifest import StageError

T = TypeVar('T')


def to_json(value: Any) -> Any:
  """JSON form of a configuration value; dataclasses keep their class name."""
  return _to_json(value, lambda inner: frozenset())


def identity(value: Any) -> Any:
  """As `to_json`, without the fields that decide only how."""
  return _to_json(value, _only_how)


def execution(value: Any) -> dict[str, Any]:
  """JSON form of the fields that decide only how, by their paths: 'execution.remat'."""
  return dict(_execution(value, ''))


def _only_how(value: Any) -> frozenset[str]:
  return getattr(value, 'only_how', frozenset())


def _execution(value: Any, place: str) -> Iterator[tuple[str, Any]]:
  inner: Iterable[tuple[Any, Any]] = ()
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    inner = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
  elif isinstance(value, Mapping):
    inner = value.items()
  elif isinstance(value, (list, tuple)):
    inner = enumerate(value)
  for name, one in inner:
    if name in _only_how(value):
      yield f'{place}{name}', to_json(one)
    else:
      yield from _execution(one, f'{place}{name}.')


def _to_json(value: Any, left_out: Callable[[Any], frozenset[str]]) -> Any:
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    unused = left_out(value)
    names = [f.name for f in dataclasses.fields(value) if f.name not in unused]
    fields = {name: _to_json(getattr(value, name), left_out) for name in names}
    return {'class': class_name(type(value)), **fields}
  if isinstance(value, Mapping):
    return {str(k): _to_json(v, left_out) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_to_json(v, left_out) for v in value]
  if value is None or isinstance(value, (bool, int, float, str)):
    return value
  if isinstance(value, Path):
    return str(value)
  raise TypeError(f'{value!r} of {type(value).__name__} cannot be part of a stage configuration')


def class_name(kind: type) -> str:
  """The name of a class in a manifest: that of its module stands before it if it is not ours."""
  is_ours = kind.__module__.partition('.')[0] == __name__.partition('.')[0]
  return kind.__name__ if is_ours else f'{kind.__module__}.{kind.__qualname__}'


def from_json(kind: type[T], content: Mapping[str, Any]) -> T:
  """The inverse of `to_json` for a dataclass; those inside of it are named by its annotations.

  Raises StageError if the content is of another class, or has not exactly its fields.
  """
  fields = {name: value for name, value in content.items() if name != 'class'}
  hints = typing.get_type_hints(kind)
  expected = {field.name for field in dataclasses.fields(kind)}
  if content.get('class') != class_name(kind) or fields.keys() != expected:
    wrong = sorted(fields.keys() ^ expected)
    raise StageError(
      f'what was recorded as {content.get("class")} is no {class_name(kind)} of this version '
      f'(fields that differ: {wrong}): make it again'
    )
  return kind(**{name: _from_json(hints[name], value) for name, value in fields.items()})


def _from_json(hint: Any, value: Any) -> Any:
  alternatives = typing.get_args(hint) if _is_union(hint) else (hint,)
  if isinstance(value, Mapping) and 'class' in value:
    named = [k for k in alternatives if dataclasses.is_dataclass(k)]
    kind = next((k for k in named if class_name(k) == value['class']), None)
    if kind is None:
      raise StageError(f'what was recorded as {value["class"]} is none of {named}: make it again')
    return from_json(kind, value)
  if isinstance(value, list):
    hints = next((typing.get_args(k) for k in alternatives if typing.get_origin(k) is tuple), ())
    return tuple(_from_json(hints[0] if hints else Any, item) for item in value)
  return value


def _is_union(hint: Any) -> bool:
  return typing.get_origin(hint) in (typing.Union, types.UnionType)

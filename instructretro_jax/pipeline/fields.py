"""Whether what gin files give is of the types that fields say, and counts count something."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import math
import re
import types
import typing
from typing import Any

from beartype import BeartypeConf
from beartype.door import is_bearable
from beartype.roar import BeartypeException

# what counts or measures something is 1 or more, unless a field says otherwise
_COUNTS = re.compile(
  r'(num|max)_.*|.*_(len|size|width|heads|layers|steps|every|queries|shards|bytes)|shards|width'
)
MAY_BE_0 = types.MappingProxyType({'least': 0})  # metadata of such a field

_CONF = BeartypeConf(is_pep484_tower=True)  # an int is a float


def wrong_fields(value: Any, place: str) -> Iterator[str]:
  """What is wrong with the fields of a dataclass and of those inside of it, in words.

  A list is taken for a tuple, True for no number, and NaN and infinities for no number either.
  """
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
      where, given = f'{place}.{field.name}', getattr(value, field.name)
      if not _fits(_as_tuples(given), hints[field.name]):
        yield f'{where} = {given!r} is no {field.type}'
      elif _COUNTS.fullmatch(field.name) and type(given) is int:
        least = field.metadata.get('least', 1)
        if given < least:
          yield f'{where} = {given}: give at least {least}'
      yield from wrong_fields(given, where)
  elif isinstance(value, Mapping):
    for key, one in value.items():
      yield from wrong_fields(one, f'{place}[{key!r}]')
  elif isinstance(value, (list, tuple)):
    for n, one in enumerate(value):
      yield from wrong_fields(one, f'{place}[{n}]')


def _fits(value: Any, hint: Any) -> bool:
  if isinstance(value, float) and not math.isfinite(value):
    return False
  if isinstance(value, bool):
    return hint is Any or bool in (hint, *typing.get_args(hint))
  try:
    return is_bearable(value, hint, conf=_CONF)
  except BeartypeException:  # a protocol, or a tuple of some, whose members cannot be looked at
    return isinstance(value, typing.get_origin(hint) or object)


def _as_tuples(value: Any) -> Any:
  return tuple(map(_as_tuples, value)) if isinstance(value, (list, tuple)) else value

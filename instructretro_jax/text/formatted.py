"""Text whose form has control tokens: the form's own parts apart from what stands inside of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
import re

from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.text.tokens import Vocabulary


@dataclasses.dataclass(frozen=True)
class Control:
  """A control token by its name, as a part of a form."""

  name: str


Part = str | Control


class Formatted(str):
  """A text in a form: as a string it spells its control tokens; `parts` tells them from text.

  A part that is text stays text when it is encoded, whatever it spells.
  """

  parts: tuple[Part, ...]

  def __new__(cls, parts: Iterable[Part]) -> Formatted:
    """Of texts and control tokens in order."""
    parts = tuple(parts)
    made = super().__new__(cls, ''.join(p.name if isinstance(p, Control) else p for p in parts))
    made.parts = parts
    return made


def split(text: str, names: Sequence[str]) -> list[Part]:
  """The parts of a form's own text, in which names of control tokens are control tokens."""
  if not names:
    return [text] if text else []
  known = '|'.join(map(re.escape, sorted(names, key=len, reverse=True)))
  parts = re.split(f'({known})', text)
  return [Control(p) if n % 2 else p for n, p in enumerate(parts) if p]


def encode(
  vocab: Vocabulary, text: str, *, starts: bool = False, continues: bool = False
) -> list[int]:
  """The tokens of a text; a plain string is one part of it.

  Args:
    starts: begin with what the vocabulary begins texts with, unless the form does so itself.
    continues: other text stands before it.

  Raises StageError for a control token that the vocabulary does not have.
  """
  ids: list[int] = []
  begins = not continues  # as the first text, or the first behind a start token
  for part in _joined(text.parts if isinstance(text, Formatted) else (str(text),)):
    if isinstance(part, Control):
      token = vocab.control_id(part.name)
      if token is None:
        raise StageError(f'{vocab.source} has no control token {part.name!r}')
      ids.append(token)
      begins = (token,) == tuple(vocab.start_ids)
    else:
      ids += vocab.encode(part, continues=not begins)
      begins = False
  start = list(vocab.start_ids) if starts else []
  return ids if ids[: len(start)] == start else [*start, *ids]


def _joined(parts: Iterable[Part]) -> list[Part]:
  """The parts with texts side by side made one."""
  joined: list[Part] = []
  for part in parts:
    if isinstance(part, str) and joined and isinstance(joined[-1], str):
      joined[-1] += part
    else:
      joined.append(part)
  return [part for part in joined if part != '']

"""Places at which a text may be cut so that its parts have the tokens of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import itertools
import re

IsSeam = Callable[[str, str], bool]  # of the text before a place and after it

# Tokenizers cut a text into words before they look for tokens. None that is published has a word
# that goes on from a letter or a digit into white space; most have none from a line end into a
# letter, which is where lines of Chinese can be cut, and none from a letter into a mark that is no
# apostrophe. Wherever it is, the neighbourhood is checked.
_SEAM = re.compile(r'(?<=\w)(?=[ \n])|(?<=\S\n)(?=\w)')
_AT_MARKS = re.compile(r"(?<=\w)(?=[^\w\s'\u2019])")
_AROUND = 48  # characters on each side that are checked
_TRIES = 500


def pieces(text: str, size: int, is_seam: IsSeam) -> Iterator[str]:
  """A text in pieces of `size` characters or a little more: up to the next place to cut.

  Where there is none, as in a line of digits without end, a piece is as long as it must be.
  """
  start = 0
  while len(text) - start > size:
    place = _next(text, start + size, start + 2 * size, is_seam)
    if place is None:
      place = _next(text, start + 2 * size, len(text), is_seam)
    if place is None:
      break
    yield text[start:place]
    start = place
  yield text[start:]


def near(text: str, place: int, is_seam: IsSeam) -> int | None:
  """A place to cut near another; None if none was found inside of the text."""
  found = _next(text, place, len(text), is_seam)
  return _next(text, 1, place, is_seam) if found is None else found


def _next(text: str, start: int, end: int, is_seam: IsSeam) -> int | None:
  for pattern in (_SEAM, _AT_MARKS):
    for found in itertools.islice(pattern.finditer(text, max(1, start), end), _TRIES):
      place = found.start()
      before, after = text[max(0, place - _AROUND) : place], text[place : place + _AROUND]
      if before and after and is_seam(before, after):
        return place
  return None

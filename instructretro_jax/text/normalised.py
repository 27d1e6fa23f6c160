"""How texts are compared: white space that differs does not make another text."""

from __future__ import annotations


def normalise_space(text: str) -> str:
  """The words of a text with one space between them: equal for copies that differ in layout."""
  return ' '.join(text.split())

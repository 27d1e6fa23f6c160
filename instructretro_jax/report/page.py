"""The report as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import markupsafe

_FULL_COLOUR = 3.0  # nats of gain or loss


def render(content: Mapping[str, Any], passages: Sequence[Mapping[str, Any]]) -> str:
  """The page; every text that comes from data is escaped.

  Args:
    content: title lines, tables (lists of rows, header first), checks and plots (SVG).
    passages: what evaluate/viewer.py wrote.
  """
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('instructretro_jax', 'report'),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  environment.filters['tint'] = tint
  environment.filters['marked'] = marked
  return environment.get_template('page.html.j2').render(**content, passages=passages)


def tint(gain: float | None) -> str:
  """Background of a token: green where retrieval helped, red where it hurt."""
  if gain is None:
    return 'transparent'
  strength = min(1.0, abs(gain) / _FULL_COLOUR)
  return f'rgba({"34,139,74" if gain > 0 else "200,60,50"},{0.65 * strength:.2f})'


def marked(text: str, spans: Sequence[Sequence[int]]) -> markupsafe.Markup:
  """Text with <mark> around character ranges; the text itself is escaped."""
  pieces, last = [], 0
  for low, high in spans:
    pieces += [markupsafe.escape(text[last:low]), markupsafe.Markup('<mark>')]
    pieces += [markupsafe.escape(text[low:high]), markupsafe.Markup('</mark>')]
    last = high
  return markupsafe.Markup('').join([*pieces, markupsafe.escape(text[last:])])

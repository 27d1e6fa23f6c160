"""Real corpora from packages: CIA World Factbook and the API reference pages of botocore."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import gzip
import hashlib
import json
import re
from typing import Any

from lxml import html

from instructretro_jax.text import packages
from instructretro_jax.text.documents import Document, Problems

_PARSER = html.HTMLParser(remove_comments=True, remove_pis=True)


def strip_html(text: str) -> str:
  """Plain text of an HTML fragment, white space squeezed."""
  if '<' in text or '&' in text:
    spaced = re.sub(
      r'<(/?(p|li|ul|ol|dl|dd|dt|br|div|note|important|t[rdh]|table|h\d)\b)', r' <\1', text
    )
    text = ''.join(html.fromstring(f'<div>{spaced}</div>', parser=_PARSER).itertext())
  return ' '.join(text.split())


@dataclasses.dataclass(frozen=True)
class Factbook:
  """256 countries and territories, one document each: the name, then sections of `field: value`.

  Attributes:
    num_countries: how many to take, in an order by hash, so that a smaller number is a subset; None
      for all.
  """

  num_countries: int | None = None

  def __post_init__(self):
    _check_count('num_countries', self.num_countries)

  def read(self, problems: Problems) -> Iterator[Document]:
    """Yields the countries in the order by hash; `problems` counts those without a text."""
    with packages.opened(packages.FACTBOOK) as archive:
      members = [member for member in archive.namelist() if member.endswith('.json')]
      for member in sorted(members, key=_hash)[: self.num_countries]:
        country = '/'.join(member.removesuffix('.json').split('/')[-2:])
        text = _country_text(country, json.loads(archive.read(member)))
        if problems.accepts(text, f'{packages.FACTBOOK.wheel}/{member}'):
          yield Document(f'factbook/{country}', text, 'factbook')


def _country_text(country: str, sections: dict[str, Any]) -> str:
  names = sections.get('Government', {}).get('Country name', {})
  forms = [names.get(f'conventional {length} form', {}).get('text') for length in ('short', 'long')]
  # Two of them are not countries, and their pages do not say their names.
  named = {'europe/ee': 'European Union', 'world/xx': 'World'}.get(country)
  lines = [named or next(strip_html(form) for form in forms if form not in (None, 'none'))]
  for section, fields in sections.items():
    lines += ['', section, *_field_lines(fields, ())]
  return '\n'.join(lines)


def _field_lines(node: Any, path: tuple[str, ...]) -> Iterator[str]:
  """A line a value, named by all fields it lies in: 'Area - land: 770,875 sq km'."""
  if isinstance(node, dict):
    for key, value in node.items():
      yield from _field_lines(value, path if key == 'text' else (*path, key.strip()))
  elif text := strip_html(node):
    yield f'{" - ".join(path)}: {text}'


@dataclasses.dataclass(frozen=True)
class BotocorePages:
  """AWS API reference, one document an operation, newest API version of each service.

  Attributes:
    num_pages: how many to take, in an order by hash, so that a smaller number is a subset; None
      for all.
    group_by: what a split keeps together. Pages of one service share much text: with 'page' they
      fall on both sides of the split, with 'service' they do not.
  """

  num_pages: int | None
  group_by: str = 'page'

  def __post_init__(self):
    if self.group_by not in ('page', 'service'):
      raise ValueError(f"group_by must be 'page' or 'service', not {self.group_by!r}")
    _check_count('num_pages', self.num_pages)

  def read(self, problems: Problems) -> Iterator[Document]:
    """Yields the pages in the order by hash; `problems` counts those without a text."""
    with packages.opened(packages.BOTOCORE) as archive:
      newest = {}
      for member in sorted(archive.namelist()):
        if member.endswith('/service-2.json.gz'):
          newest[member.split('/')[2]] = member  # versions are dates, so the last is the newest
      models = {s: json.loads(gzip.decompress(archive.read(m))) for s, m in newest.items()}
    pages = [(service, op) for service, model in models.items() for op in model['operations']]
    pages.sort(key=lambda page: _hash(f'o{page[0]}/{page[1]}'))
    for service, operation in pages[: self.num_pages]:
      text = _page(models[service], service, operation)
      page = f'botocore/{service}/{operation}'
      if problems.accepts(text, page):
        group = f'botocore/{service}' if self.group_by == 'service' else ''
        yield Document(page, text, 'botocore', group)


def _page(model: dict[str, Any], service: str, operation: str) -> str:
  entry = model['operations'][operation]
  lines = [f'{service}: {operation}', strip_html(entry.get('documentation', ''))]
  for role in ('input', 'output'):
    shape = model['shapes'].get(entry.get(role, {}).get('shape'), {})
    for name, member in shape.get('members', {}).items():
      target = model['shapes'][member['shape']]
      text = strip_html(member.get('documentation') or target.get('documentation', ''))
      lines.append(f'{name} ({target["type"]}): {text}' if text else f'{name} ({target["type"]})')
  errors = [error['shape'] for error in entry.get('errors', [])]
  if errors:
    lines.append('Errors: ' + ', '.join(errors))
  return '\n'.join(line for line in lines if line)


def _check_count(name: str, count: int | None) -> None:
  if count is not None and count < 1:
    raise ValueError(f'{name}={count}: give a count from 1, or None for all')


def _hash(text: str) -> bytes:
  return hashlib.sha256(text.encode()).digest()

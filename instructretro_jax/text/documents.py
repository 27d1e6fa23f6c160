"""A document, and the account of input that could not become one."""

from __future__ import annotations

import collections
from collections.abc import Iterator
import dataclasses
from typing import Any, Protocol

from instructretro_jax.pipeline import manifest

MAX_DOCUMENT_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Document:
  """One text. `group` is what a split keeps on one side; the document itself where empty."""

  id: str
  text: str
  source: str
  group: str = ''

  def __post_init__(self):
    if not self.group:
      object.__setattr__(self, 'group', self.id)


class Source(Protocol):
  """Where documents come from; a frozen dataclass of plain values."""

  def read(self, problems: Problems) -> Iterator[Document]:
    """Yields documents; reports what cannot become one."""


class Problems:
  """Counts bad input by kind and names the first of each; refuses it if so configured.

  Args:
    policy: 'skip' to count and go on, 'refuse' to stop at the first.
    max_examples: places remembered.
    max_document_bytes: longer texts are bad input.
  """

  def __init__(
    self,
    policy: str = 'skip',
    max_examples: int = 20,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
  ):
    if max_document_bytes < 1:
      raise ValueError(f'max_document_bytes={max_document_bytes} leaves no document')
    self.max_document_bytes = max_document_bytes
    if policy not in ('skip', 'refuse'):
      raise ValueError(f"on_bad_input must be 'skip' or 'refuse', not {policy!r}")
    self._policy, self._max_examples = policy, max_examples
    self._counts: collections.Counter[str] = collections.Counter()
    self._examples: list[str] = []

  def report(self, kind: str, place: str, detail: str) -> None:
    """Records one bad input, e.g. report('not_json', 'a.jsonl:7', 'Expecting value')."""
    place = place.encode('utf-8', 'backslashreplace').decode()
    if self._policy == 'refuse':
      raise manifest.StageError(
        f"{place}: {kind}: {detail}. Mend it, or skip such input with on_bad_input = 'skip'."
      )
    self._counts[kind] += 1
    if len(self._examples) < self._max_examples:
      self._examples.append(f'{place}: {kind}: {detail}')

  def accepts_unicode(self, name: str, place: str) -> bool:
    """Whether an id, a group or the name of a file has only whole characters; reports it if not."""
    try:
      name.encode()
    except UnicodeEncodeError:
      self.report('broken_utf8', place, f'{ascii(name)[:80]} has half a character')
      return False
    return True

  def accepts(self, text: str, place: str) -> bool:
    """Whether a text can be a document; reports it if it is empty, too long or not Unicode."""
    if not text.strip():
      self.report('empty', place, 'no text')
      return False
    try:
      num_bytes = len(text.encode())
    except UnicodeEncodeError as error:
      self.report('broken_utf8', place, f'character {error.start} of the text is half a character')
      return False
    if num_bytes > self.max_document_bytes:
      self.report_too_long(place, f'the text has {num_bytes} bytes')
      return False
    return True

  def report_too_long(self, place: str, found: str) -> None:
    """Records a text above max_document_bytes."""
    self.report('too_long', place, f'{found}, more than the {self.max_document_bytes} allowed')

  def summary(self, num_used: int, what: str = 'rows') -> str | None:
    """In words, e.g. '13 of 27 rows skipped (8 wrong_turns, 5 empty)'; None if none was.

    Args:
      num_used: how many there were beside those that were reported.
    """
    num_skipped = self._counts.total()
    if not num_skipped:
      return None
    kinds = ', '.join(f'{count} {kind}' for kind, count in self._counts.most_common())
    return f'{num_skipped} of {num_used + num_skipped} {what} skipped ({kinds})'

  def to_json(self) -> dict[str, Any]:
    """Counts by kind, and the first places of each."""
    return {'counts': dict(sorted(self._counts.items())), 'examples': list(self._examples)}

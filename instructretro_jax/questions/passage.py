"""A passage of a question: its text and its title, apart until they are shown."""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses

from instructretro_jax.text.normalised import normalise_space


@dataclasses.dataclass(frozen=True)
class Passage:
  """A text that a question is about. The title is shown with it, and no part of what it is."""

  text: str
  title: str = ''

  @property
  def shown(self) -> str:
    """As a reader sees it (Wang et al. 2023: the form of InstructRetro's question files)."""
    return f'title: {self.title}, source: {self.text}' if self.title else self.text

  @property
  def identity(self) -> str:
    """What copies of it have in common, with a title or without, in whatever layout."""
    return normalise_space(self.text)


def untitled(*texts: str) -> tuple[Passage, ...]:
  """Passages of texts that have no title."""
  return tuple(map(Passage, texts))


def shown(passages: Iterable[Passage]) -> tuple[str, ...]:
  """Passages as a reader sees them."""
  return tuple(passage.shown for passage in passages)

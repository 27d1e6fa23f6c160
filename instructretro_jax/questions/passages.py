"""Passages of question sets as documents: a database that holds what the questions are about."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import hashlib

from instructretro_jax.questions.questions import QuestionSet
from instructretro_jax.text.documents import Document, Problems


@dataclasses.dataclass(frozen=True)
class PassagesOf:
  """Every passage of some question sets, once; the id is its task and hash."""

  sets: tuple[QuestionSet, ...]

  def read(self, problems: Problems) -> Iterator[Document]:
    """Yields set by set; passages that differ in white space or title alone are one."""
    seen = set()
    for one in self.sets:
      for question in one.read(problems):
        for passage in question.passages:
          key = hashlib.sha256(passage.identity.encode()).hexdigest()[:16]
          if key not in seen and problems.accepts(passage.text, question.id):
            seen.add(key)
            yield Document(f'{question.task}/{key}', passage.shown, question.task)

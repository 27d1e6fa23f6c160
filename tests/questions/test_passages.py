"""Passages of question sets as documents."""

import dataclasses

from instructretro_jax.questions.passage import untitled
from instructretro_jax.questions.passages import PassagesOf
from instructretro_jax.questions.questions import Question
from instructretro_jax.text.documents import Problems


@dataclasses.dataclass(frozen=True)
class Given:
  passages: tuple[tuple[str, ...], ...]
  task: str

  def read(self, problems):
    for n, passages in enumerate(self.passages):
      yield Question(f'{self.task}{n}', 'q?', untitled(*passages), ('a',), self.task)


def test_every_passage_is_a_document_once():
  sets = (Given((('one', 'two'), ('two  ',)), 'a'), Given((('two', 'three'), (' ',)), 'b'))
  problems = Problems()
  documents = list(PassagesOf(sets).read(problems))
  assert [(d.text, d.source) for d in documents] == [('one', 'a'), ('two', 'a'), ('three', 'b')]
  assert len({d.id for d in documents}) == 3 and documents[2].id.startswith('b/')
  assert problems.to_json()['counts'] == {'empty': 1}

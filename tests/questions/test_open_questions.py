"""Open questions of a package."""

import pytest

from instructretro_jax.questions import open_questions
from instructretro_jax.text.documents import Problems


@pytest.mark.packages
def test_packaged_sets():
  sets = {
    open_questions.NaturalQuestions('dev'): 8757,
    open_questions.NaturalQuestions('test'): 3610,
    open_questions.TriviaQA('dev'): 8837,
    open_questions.TriviaQA('test'): 11313,
    open_questions.SquadOpen(): 10570,
  }
  read = [list(one.read(Problems('refuse'))) for one in sets]
  assert [len(found) for found in read] == list(sets.values())
  everything = [question for found in read for question in found]
  assert len({q.id for q in everything}) == len(everything)
  assert all(q.question and q.answers and all(q.answers) for q in everything)
  assert all(len(set(q.answers)) == len(q.answers) for q in everything)
  assert all((q.passages, q.style) == ((), 'span') for q in everything)
  nq_test, trivia_dev = read[1], read[2]
  assert nq_test[0].question == 'who got the first nobel prize in physics'
  assert nq_test[0].answers == ('Wilhelm Conrad Röntgen',)
  assert trivia_dev[0].question == 'The VS-300 was a type of what?'
  assert 'Pescara (helicopter)' in trivia_dev[0].answers
  assert read[4][0].answers == ('Denver Broncos',)


def test_only_known_splits():
  for kind in (open_questions.NaturalQuestions, open_questions.TriviaQA):
    with pytest.raises(ValueError, match="not 'train'"):
      kind('train')

"""Question sets and their split by passage."""

import collections
import dataclasses
import json

import pytest

from instructretro_jax.pipeline import manifest, stage
from instructretro_jax.questions import question_sets, questions
from instructretro_jax.questions.passage import untitled
from instructretro_jax.questions.question_sets import JsonLinesQuestions
from instructretro_jax.questions.questions import Question
from instructretro_jax.text.documents import Problems


@dataclasses.dataclass(frozen=True)
class Given:
  """A set of given questions: (id, question, passages)."""

  task: str
  rows: tuple[tuple[str, str, tuple[str, ...]], ...]

  def read(self, problems):
    del problems
    for row_id, question, passages in self.rows:
      yield Question(row_id, question, untitled(*passages), ('yes',), self.task)


def given(task, num, num_passages):
  rows = ((f'{task}{n}', f'{task} {n}?', (f'passage  {n % num_passages}',)) for n in range(num))
  return Given(task, tuple(rows))


def build(root, *sets, **fields):
  fields = {'heldout_fraction': 0.3} | fields
  return stage.run(questions.Questions(sets=sets, **fields), root)


def both(root):
  return [questions.read_questions(root / 'questions', split) for split in questions.SPLITS]


def passages_of(some):
  return {passage.identity for question in some for passage in question.passages}


def test_round_trip_and_counts(tmp_path):
  one, two = given('a', 90, 45), given('b', 60, 30)
  counts = build(tmp_path, one, two).counts
  train, heldout = both(tmp_path)
  asked = [question for s in (one, two) for question in s.read(None)]
  assert sorted(train + heldout, key=str) == sorted(asked, key=str)
  assert counts['train'] == dict(collections.Counter(q.task for q in train))
  assert counts['heldout'] == dict(collections.Counter(q.task for q in heldout))


def test_no_passage_is_on_both_sides_even_across_sets(tmp_path):
  spaced = Given('b', tuple((f'b{n}', f'b {n}?', (f'passage {n}\n',)) for n in range(45)))
  build(tmp_path, given('a', 90, 45), spaced)
  train, heldout = both(tmp_path)
  assert heldout and not passages_of(train) & passages_of(heldout)


def test_linked_passages_stay_together(tmp_path):
  rows = tuple((f'{n}', f'{n}?', (f'p{n}', f'p{n + n % 2}', f'own {n}')) for n in range(80))
  build(tmp_path, Given('a', rows))
  train, heldout = both(tmp_path)
  assert heldout and train and not passages_of(train) & passages_of(heldout)


def test_the_order_of_reading_leaves_the_bytes_alone(tmp_path):
  one, two = given('a', 90, 45), given('b', 60, 30)
  build(tmp_path / 'x', one, two)
  build(tmp_path / 'y', Given('b', two.rows[::-1]), Given('a', one.rows[::-1]))
  files = [
    [(tmp_path / root / 'questions' / f'{split}.jsonl').read_bytes() for split in questions.SPLITS]
    for root in 'xy'
  ]
  assert files[0] == files[1] and all(files[0])


def test_a_limit_takes_a_part_of_each_set(tmp_path):
  sets = given('a', 90, 45), given('b', 60, 30)
  build(tmp_path / 'all', *sets)
  build(tmp_path / 'some', *sets, max_per_set=40)
  for whole, part in zip(both(tmp_path / 'all'), both(tmp_path / 'some'), strict=True):
    assert {q.id for q in part} < {q.id for q in whole}
  train, heldout = both(tmp_path / 'some')
  assert collections.Counter(q.task for q in train + heldout) == {'a': 40, 'b': 40}


def test_a_repeated_question_is_kept_once(tmp_path):
  rows = given('a', 60, 30).rows
  again = tuple((f'again {row_id}', *rest) for row_id, *rest in rows[:7])
  counts = build(tmp_path, Given('a', rows + again)).counts
  assert counts['duplicates'] == 7 and sum(map(len, both(tmp_path))) == 60


def test_a_repeated_id_is_an_error(tmp_path):
  with pytest.raises(manifest.StageError, match="'a0'"):
    build(tmp_path, given('a', 9, 9), given('a', 9, 9))


def test_an_empty_split_is_an_error(tmp_path):
  with pytest.raises(manifest.StageError, match='heldout split'):
    build(tmp_path, given('a', 9, 1), heldout_fraction=1e-6)
  with pytest.raises(manifest.StageError, match='train split'):
    build(tmp_path, given('a', 9, 1), heldout_fraction=1 - 1e-6, name='other')


def test_impossible_fields_are_rejected():
  with pytest.raises(ValueError, match='at least one set'):
    questions.Questions(sets=(), heldout_fraction=0.1)
  for field in ({'heldout_fraction': 1.1}, {'max_per_set': 0}, {'on_bad_input': 'ask'}):
    with pytest.raises(ValueError, match=str(next(iter(field.values())))):
      questions.Questions(**({'sets': (given('a', 1, 1),), 'heldout_fraction': 0.1} | field))


def test_own_rows(tmp_path):
  rows = [
    {'question': 'a?', 'passage': 'p', 'answer': 'x'},
    {'question': 'b?', 'passages': ['p', 'q'], 'answers': ['x', 'y']},
    {'question': 'open?', 'passages': [], 'answer': 'x'},
    {'question': '', 'passage': 'p', 'answer': 'x'},
    {'question': 'c?', 'pasage': 'p', 'answer': 'x'},
    {'question': 'd?', 'passage': 'p', 'answers': []},
    {'question': 'e?', 'passage': 'p', 'answers': 'x'},
    {'question': 'f?', 'passage': ' ', 'answer': 'x'},
  ]
  path = tmp_path / 'own.jsonl'
  path.write_text('\n'.join([json.dumps(row) for row in rows] + ['{']))
  problems = Problems()
  found = list(JsonLinesQuestions(str(path)).read(problems))
  assert found == [
    Question('own:own.jsonl:1', 'a?', untitled('p'), ('x',), 'own'),
    Question('own:own.jsonl:2', 'b?', untitled('p', 'q'), ('x', 'y'), 'own'),
    Question('own:own.jsonl:3', 'open?', (), ('x',), 'own'),
    Question('own:own.jsonl:7', 'e?', untitled('p'), ('x',), 'own'),
  ]
  assert problems.to_json()['counts'] == {
    'empty': 1,
    'missing_answer': 1,
    'missing_passage': 1,
    'missing_question': 1,
    'not_json': 1,
  }


@pytest.mark.parametrize(
  'joined, spans',
  [
    ('the cat the cat sat', ('the cat', 'the cat sat')),
    ('sat the cat sat', ('sat', 'the cat sat')),
    ('CANNOTANSWER CANNOTANSWER the mat.', ('CANNOTANSWER', 'the mat.')),
    ('dog the cat', ('dog', 'the cat')),
    ('sat on the mat. Now it sleeps.', ('sat on the mat.', 'Now it sleeps.')),
    ('the mat. Now on the mat.', ('the mat. Now on the mat.',)),
  ],
)
def test_split_spans(joined, spans):
  passage = 'Then the cat sat on the mat. Now on the mat. Now it sleeps.'
  assert question_sets.split_spans(joined, passage) == spans


def test_rows_may_have_turns_before_options_and_a_style(tmp_path):
  rows = [
    {'history': ['a?', 'b.'], 'system': 'S.', 'style': 'full'},
    {'options': ['red', 'blue'], 'style': 'option'},
    {'history': ['a?']},
    {'style': 'rhyme'},
  ]
  rows = [{'question': 'q?', 'passages': [], 'answer': 'B'} | row for row in rows]
  path = tmp_path / 'rows.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  problems = Problems('skip')
  one, two = JsonLinesQuestions(str(path)).read(problems)
  assert (one.history, one.system, one.style) == (('a?', 'b.'), 'S.', 'full')
  assert (two.options, two.style, two.history) == (('red', 'blue'), 'option', ())
  assert problems.to_json()['counts'] == {'odd_history': 1, 'unknown_style': 1}


@pytest.mark.packages
def test_packaged_sets():
  sets = (
    question_sets.BoolQ(),
    question_sets.NarrativeQA(),
    question_sets.QuAC(),
    question_sets.DisflQA(),
  )
  read = [list(one.read(Problems('refuse'))) for one in sets]
  assert [len(found) for found in read] == [12697, 3000, 3000, 1000]
  everything = [question for found in read for question in found]
  assert len({q.id for q in everything}) == len(everything)
  assert all(q.question.strip() and q.answers and all(q.answers) for q in everything)
  assert all(len(q.passages) == 1 and q.passages[0].text.strip() for q in everything)
  assert collections.Counter(q.answers for q in read[0]) == {('yes',): 7907, ('no',): 4790}
  first, second, third = read[2][:3]
  assert second.history == (first.question, first.answers[0]) and first.history == ()
  assert third.history == (*second.history, second.question, second.answers[0])
  assert all(a == 'CANNOTANSWER' or a in q.passages[0].text for q in read[2] for a in q.answers)

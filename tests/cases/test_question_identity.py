"""What makes two questions one, and on which side of the split a question is."""

import dataclasses
import json

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from instructretro_jax.pipeline import stage
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.questions.instruction_sets import Dialogues, QaFiles
from instructretro_jax.questions.passage import Passage
from instructretro_jax.questions.question_sets import JsonLinesQuestions
from instructretro_jax.questions.questions import Question, Questions, read_questions
from tests.cases.question_files import read

GIVEN = settings(max_examples=100, derandomize=True, deadline=None)


def build(root, *sets, **fields):
  fields = {'heldout_fraction': 1.0} | fields
  counts = stage.run(Questions(sets=sets, **fields), root).counts
  return counts, read_questions(root / 'questions', 'heldout')


def test_questions_with_one_stem_are_kept(write_rows, tmp_path):
  letters = [[f'{letter}{n}' for letter in 'wxyz'] for n in range(20)]
  rows = [
    {'question': 'Which is true?', 'passages': [], 'options': options, 'answer': 'B'}
    for options in letters
  ]
  turns = [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello.'}]
  personas = [{'system': f'You are {n}.', 'messages': turns} for n in range(20)]
  other = [
    {'messages': [turns[0], {'role': 'assistant', 'content': f'I am {n}.'}]} for n in range(9)
  ]
  spaced = [{'messages': [turns[0], {'role': 'assistant', 'content': ' I  am 0. '}]}]
  choice = JsonLinesQuestions(write_rows(rows + rows[:3], 'choice.jsonl'))
  chat = Dialogues(write_rows(personas + other + spaced, 'chat.jsonl'))
  counts, found = build(tmp_path, choice, chat)
  assert counts['heldout'] == {'own': 20, 'dialogues': 29} and counts['duplicates'] == 4
  assert len({question.options for question in found}) == 21


def test_a_paragraph_with_and_without_its_title_is_on_one_side(write_rows, tmp_path):
  texts = [f'Paragraph  number {n} says {n * n}.' for n in range(40)]
  titled = [
    {'question': f'a {n}?', 'answers': ['x'], 'ctxs': [{'title': f'T{n}', 'text': text}]}
    for n, text in enumerate(texts)
  ]
  bare = [
    {'question': f'b {n}?', 'answers': ['x'], 'passage': ' '.join(text.split()) + '\n'}
    for n, text in enumerate(texts)
  ]
  sets = (
    QaFiles(write_rows(titled, 'a.json'), 'a'),
    JsonLinesQuestions(write_rows(bare, 'b.jsonl'), 'b'),
  )
  build(tmp_path, *sets, heldout_fraction=0.3)
  sides = [read_questions(tmp_path / 'questions', split) for split in ('train', 'heldout')]
  train, heldout = ({q.question.split()[1] for q in side} for side in sides)
  assert len(train) + len(heldout) == 40 and heldout and train
  shown = {q.question: q.shown_passages for side in sides for q in side}
  assert shown['a 1?'] == (f'title: T1, source: {texts[1]}',)


def test_files_of_one_name_have_ids_of_their_own(write_rows, tmp_path):
  row = {'question': 'q?', 'passages': [], 'answer': 'x'}
  paths = tuple(
    write_rows([row | {'question': f'{n}?'}], f'{n}/deep/train.jsonl') for n in range(3)
  )
  found, _ = read(JsonLinesQuestions((*paths, write_rows([row], 'other.jsonl'))))
  assert [q.id for q in found] == [
    *(f'own:{n}/deep/train.jsonl:1' for n in range(3)), 'own:other.jsonl:1'
  ]  # fmt: skip


def test_questions_that_an_earlier_version_wrote_are_refused_with_the_remedy(tmp_path):
  row = dataclasses.asdict(Question('q', 'q?', (), ('x',), 'own')) | {'passages': ['p']}
  (tmp_path / 'train.jsonl').write_text(json.dumps(row))
  with pytest.raises(StageError, match='is not what this version writes .* --rebuild='):
    read_questions(tmp_path, 'train')


words = st.text('ab \n', max_size=3)
question = st.builds(
  Question,
  id=st.just('q'),
  question=words,
  passages=st.lists(st.builds(Passage, words, words), max_size=2).map(tuple),
  answers=st.lists(words, min_size=1, max_size=2).map(tuple),
  task=st.just('own'),
  style=st.sampled_from(['given', 'span']),
  history=st.lists(words, max_size=2).map(tuple),
  system=st.none() | words,
  options=st.lists(words, max_size=2).map(tuple),
)


def shown(one):
  """What a model is shown, with white space made one."""
  space = lambda text: text if text is None else ' '.join(text.split())
  texts = [tuple(map(space, some)) for some in (one.history, one.options, [one.question])]
  passages = tuple(space(passage.text) for passage in one.passages)
  answers = {space(answer) for answer in one.answers} if one.style == 'given' else None
  return texts, passages, space(one.system), one.style, answers


@GIVEN
@given(question, question)
def test_questions_are_one_where_all_that_is_shown_is_one(one, two):
  assert (one.identity == two.identity) == (shown(one) == shown(two))


@GIVEN
@given(question, st.sampled_from([' ', '\n', '\t  ']))
def test_white_space_and_titles_make_no_other_question(one, space):
  wide = lambda texts: tuple(space + text.replace(' ', f' {space}') for text in texts)
  passages = tuple(Passage(t, 'T') for t in wide(p.text for p in one.passages))
  (asked,), history, options = wide([one.question]), wide(one.history), wide(one.options)
  fields = {'question': asked, 'history': history, 'options': options, 'passages': passages}
  assert dataclasses.replace(one, **fields).identity == one.identity

"""Question, instruction and dialogue files of other people: what is read, and what is said."""

import dataclasses
import json

from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from instructretro_jax import main
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.questions.fields import Unusable
from instructretro_jax.questions.instruction_sets import Dialogues, InstructionRows, QaFiles
from instructretro_jax.questions.passage import untitled
from instructretro_jax.questions.question_sets import JsonLinesQuestions
from tests.cases.question_files import read

GIVEN = settings(max_examples=300, derandomize=True, deadline=None)

# answers of a closed kind


@pytest.mark.parametrize(
  'row, answers',
  [
    ({'options': ['red', 'green'], 'answer': 'green'}, ('B',)),
    ({'options': ['red', 'green'], 'answer': ' GREEN '}, ('B',)),
    ({'options': ['red', 'dark  green'], 'answer': 'dark green'}, ('B',)),
    ({'options': ['red', 'green'], 'answer': 'b'}, ('B',)),
    ({'options': ['red', 'green'], 'answer': '(B)'}, ('B',)),
    ({'options': ['red', 'green'], 'answer': 'b.'}, ('B',)),
    ({'options': ['red', 'green'], 'answer': '(B) green'}, ('B',)),
    ({'options': ['red', 'green'], 'answers': ['green', 'B', 'verde']}, ('B',)),
    ({'options': ['red', 'red', 'blue'], 'answer': 'red'}, ('A', 'B')),
    ({'options': [2, 4], 'answer': 4}, ('B',)),
    ({'choices': {'text': ['red', 'green'], 'label': ['A', 'B']}, 'answer': 'B'}, ('B',)),
    ({'style': 'boolean', 'answer': 'Yes'}, ('yes',)),
    ({'style': 'boolean', 'answer': 'True.'}, ('yes',)),
    ({'style': 'boolean', 'answer': 1}, ('yes',)),
    ({'style': 'boolean', 'answers': ['NO', 'no']}, ('no',)),
    ({'answer': False}, ('no',)),
    ({'answer': 1887}, ('1887',)),
    ({'answers': [3.5, 'three and a half']}, ('3.5', 'three and a half')),
    ({'answer': 'x', 'history': None, 'options': None, 'system': None, 'style': None}, ('x',)),
    ({'answers': {'text': ['x', 'y', 'x'], 'answer_start': [1, 2, 3]}}, ('x', 'y')),
    ({'answers': 'whole string'}, ('whole string',)),
    ({'answers': ['', 'x', ' ', None]}, ('x',)),
  ],
)
def test_answers_have_the_form_that_is_asked_for(write_rows, row, answers):
  (question,), problems = read(
    JsonLinesQuestions(write_rows([{'question': 'q?', 'passage': 'p', **row}]))
  )
  assert question.answers == answers and not problems['counts']
  if question.choices:
    assert set(answers) <= set(question.choices) and question.style in ('option', 'boolean')


def test_whole_numbers_count_options_where_the_set_says_from_what(write_rows):
  row = {'question': 'q?', 'passages': [], 'options': ['red', 'green', 'blue']}
  path = write_rows([row | {'answer': 1}, row | {'answer': '2'}, row | {'answer': 3}])
  for first, letters in ((0, ['B', 'C']), (1, ['A', 'B', 'C'])):
    found, problems = read(JsonLinesQuestions(path, first_index=first))
    assert [question.answers[0] for question in found] == letters
    assert problems['counts'].get('wrong_answer', 0) == 3 - len(letters)
  with pytest.raises(StageError, match='wrong_answer: the answer 1 is .* set first_index'):
    read(JsonLinesQuestions(path))


@pytest.mark.parametrize(
  'field, kind',
  [
    ({'options': ['red', 'green'], 'answer': 'blue'}, 'wrong_answer'),
    ({'options': ['red', 'green'], 'answer': 'C'}, 'wrong_answer'),
    ({'options': ['B', 'A'], 'answer': 'A'}, 'wrong_answer'),  # a letter, or the text of another
    ({'style': 'boolean', 'answer': 'perhaps'}, 'wrong_answer'),
    ({'answer': float('nan')}, 'wrong_answer'),
    ({'options': 'ab'}, 'wrong_options'),
    ({'options': [f'text {n}' for n in range(27)]}, 'wrong_options'),
    ({'options': ['red', '']}, 'empty'),
    ({'options': ['red', ['green']]}, 'wrong_type'),
    ({'history': 'q? a.'}, 'wrong_type'),
    ({'history': ['q?', 3]}, 'wrong_type'),
    ({'history': ['q?', ' ']}, 'empty'),
    ({'history': ['q?']}, 'odd_history'),
    ({'system': 3}, 'wrong_type'),
    ({'style': ['span']}, 'wrong_type'),
    ({'style': 'rhyme'}, 'unknown_style'),
    ({'passages': ['p', 3]}, 'wrong_type'),
    ({'passages': [{'title': 'T'}]}, 'wrong_type'),
    ({'passages': ['', ' ']}, 'empty'),
    ({'answer': ['', ' ']}, 'empty'),
    ({'answer': []}, 'missing_answer'),
    ({'answer': {'start': 3}}, 'wrong_type'),
    ({'question': 'half \ud83d?'}, 'broken_utf8'),
    ({'history': ['half \ud83d?', 'a.']}, 'broken_utf8'),
    ({'options': ['half \ud83d', 'x']}, 'broken_utf8'),
    ({'system': 'half \ud83d'}, 'broken_utf8'),
    ({'passages': ['half \ud83d']}, 'broken_utf8'),
    ({'passages': [{'title': 'half \ud83d', 'text': 'p'}]}, 'broken_utf8'),
    ({'answer': 'half \ud83d'}, 'broken_utf8'),
  ],
)
def test_a_field_that_cannot_be_used_is_reported_with_its_line(write_rows, field, kind):
  row = {'question': 'q?', 'passages': ['p'], 'answer': 'x'}
  path = write_rows([row, row | field])
  (found,), problems = read(JsonLinesQuestions(path))
  assert found.id == 'own:rows.jsonl:1' and problems['counts'] == {kind: 1}
  assert problems['examples'][0].startswith(f'{path}:2: {kind}: ')
  assert kind == 'wrong_answer' or str(next(reversed(field))) in problems['examples'][0]


def test_blank_passages_and_answers_are_left_out_and_the_question_stays(write_rows):
  row = {'question': 'q?', 'passages': ['', 'p', ' '], 'answers': [' ', 'x', '']}
  (question,), problems = read(JsonLinesQuestions(write_rows([row])))
  assert (question.passages, question.answers) == (untitled('p'), ('x',)) and not problems['counts']


# files of other people


SQUAD = {'title': 'T', 'context': 'Built by Ann.', 'question': 'Who built it?', 'id': '5a'}
NESTED = SQUAD | {'answers': [{'text': 'Ann', 'answer_start': 9}]}
SPAN = {'text': ['Ann'], 'answer_start': [9]}
TITLED = 'title: T, source: Built by Ann.'
ARC = {'id': 'x', 'question': 'q?', 'answerKey': '2',
       'choices': {'text': ['ice', 'air'], 'label': ['1', '2']}}  # fmt: skip
GLUE = {'question': 'is it', 'passage': 'P.', 'idx': 0}
DIALOGUE = [('Hi', 'Hello.'), ('Who?', 'Ann.')]


@pytest.mark.parametrize(
  'one, row, expected',
  [
    (QaFiles, SQUAD | {'answers': SPAN}, ((TITLED,), ('Ann',), 'span')),
    (JsonLinesQuestions, SQUAD | {'answers': SPAN}, ((TITLED,), ('Ann',), 'span')),
    (QaFiles, SQUAD | {'answers': SPAN, 'title': None}, (('Built by Ann.',), ('Ann',), 'span')),
    (
      QaFiles,
      {'data': [{'title': 'N', 'paragraphs': [{'context': 'P.', 'qas': [NESTED]}]}]},
      (('title: N, source: P.',), ('Ann',), 'span'),
    ),
    (
      QaFiles,
      SQUAD | {'context': ['P.', 'Q.'], 'answers': SPAN},  # whose title would it be?
      (('P.', 'Q.'), ('Ann',), 'span'),
    ),
    (QaFiles, ARC, ((), ('B',), 'option')),
    (QaFiles, ARC | {'answerKey': 2}, ((), ('B',), 'option')),
    (
      QaFiles,
      ARC | {'choices': [{'label': 'B', 'text': 'ice'}, {'label': 'A', 'text': 'air'}],
             'answerKey': 'A'},
      ((), ('B',), 'option'),
    ),
    (
      QaFiles,
      {'question': 'q?', 'answer': {'value': 'Ann', 'aliases': ['Anne', 'Ann'], 'type': 'X'}},
      ((), ('Ann', 'Anne'), 'span'),
    ),
    (JsonLinesQuestions, GLUE | {'label': True}, (('P.',), ('yes',), 'boolean')),
    (
      QaFiles,
      {'question': 'q?', 'answers': ['x', ''], 'positive_ctxs': [{'title': 'T', 'text': 'P.'}],
       'negative_ctxs': [], 'hard_negative_ctxs': [{'title': 'N', 'text': 'not it'}]},
      (('title: T, source: P.',), ('x',), 'span'),
    ),
    (
      QaFiles,
      {'id': 3, 'question': 'q?', 'target': 'x', 'answers': ['x'],
       'ctxs': [{'id': '1', 'title': 'T', 'text': 'P.', 'score': '1.5'}, {'text': ''}]},
      (('title: T, source: P.',), ('x',), 'span'),
    ),
    (
      JsonLinesQuestions,
      {'question': 'is it', 'title': 'T', 'answer': True, 'passage': 'P.'},
      (('title: T, source: P.',), ('yes',), 'boolean'),
    ),
  ],
)  # fmt: skip
def test_question_files(write_rows, one, row, expected):
  (found,), problems = read(one(write_rows([row]), 'qa'))
  assert (found.shown_passages, found.answers, found.style) == expected and not problems['counts']


def test_a_label_says_something_where_the_set_declares_what(write_rows):
  path = write_rows([GLUE | {'label': 0}, GLUE | {'label': 1}, GLUE | {'label': -1}])
  for one in (JsonLinesQuestions, QaFiles):
    found, problems = read(one(path, 'glue', style='boolean'))
    assert [q.answers for q in found] == [('no',), ('yes',)]
    assert problems['counts'] == {'wrong_answer': 1}
    options = ('entailment', 'not entailment')
    found, problems = read(one(path, 'glue', options=options, first_index=0))
    assert [q.answers for q in found] == [('A',), ('B',)]
    assert {(q.style, q.options) for q in found} == {('option', options)}
    assert problems['counts'] == {'wrong_answer': 1}
    with pytest.raises(StageError, match='what its "label" means is said by options of the set'):
      read(one(path, 'glue'))
    with pytest.raises(ValueError, match="glue: options=.'one',. are from 2 to 26 texts"):
      one(path, 'glue', options=('one',))


@pytest.mark.parametrize(
  'field, kind',
  [
    ({'choices': {'text': ['2', '1'], 'label': ['1', '2']}}, 'wrong_answer'),  # which of the two?
    ({'answerKey': '3'}, 'wrong_answer'),
    ({'choices': [{'label': '1'}, {'label': '2'}]}, 'wrong_type'),
    ({'answerKey': {'aliases': []}}, 'wrong_type'),
    ({'context': 'P.', 'title': 3}, 'wrong_type'),
    ({'context': 'P.', 'title': '\ud83d'}, 'broken_utf8'),
  ],
)
def test_labels_and_titles_that_cannot_be_used(write_rows, field, kind):
  (_,), problems = read(QaFiles(write_rows([ARC, ARC | field]), 'arc'))
  assert problems['counts'] == {kind: 1}


@pytest.mark.parametrize(
  'key, names, roles',
  [
    ('conversations', ('from', 'value'), ('human', 'gpt')),
    ('conversations', ('from', 'value'), ('Human', 'bot')),
    ('messages', ('role', 'content'), ('User', 'Assistant')),
    ('turns', ('role', 'content'), ('human', 'assistant')),
  ],
)
def test_dialogues_under_other_names(write_rows, key, names, roles):
  said = [text for pair in DIALOGUE for text in pair]
  turns = [dict(zip(names, (roles[n % 2], text))) for n, text in enumerate(said)]
  system = [dict(zip(names, ('System', 'S.')))]
  (found,), problems = read(Dialogues(write_rows([{'id': 's', key: system + turns}])))
  assert (found.history, found.question, found.answers) == (('Hi', 'Hello.'), 'Who?', ('Ann.',))
  assert found.system == 'S.' and not problems['counts']


def test_dialogues_that_cannot_be_learnt_are_counted(write_rows):
  ask, say = {'role': 'user', 'content': 'Q?'}, {'role': 'assistant', 'content': 'A.'}
  call = {'role': 'assistant', 'content': None, 'tool_calls': [{'id': 1}]}
  rows = [
    {'messages': [ask, say]},
    {'messages': [ask, say, ask]},
    {'messages': [ask, call, {'role': 'tool', 'content': '7'}, say]},
    {'messages': [ask, {'role': 'critic', 'content': 'C.'}]},
    {'messages': "[{'role': 'user'}]"},
    {'messages': [ask, {'role': 'assistant', 'content': 'half \ud83d'}]},
    {'messages': [ask], 'answer': ['A.']},
  ]
  found, problems = read(Dialogues(write_rows(rows)))
  assert len(found) == 1
  assert problems['counts'] == {
    'broken_utf8': 1, 'missing_turns': 1, 'tool_turns': 1, 'wrong_turns': 2, 'wrong_type': 1
  }  # fmt: skip


def test_instructions_with_half_a_character_are_skipped_with_the_field(write_rows):
  good = {'instruction': 'Add.', 'input': None, 'output': '3'}
  half = [good | {key: 'x\ud83d'} for key in good]
  found, problems = read(InstructionRows(write_rows([good, *half, good | {'input': ['1', '2']}])))
  assert [q.question for q in found] == ['Add.']
  assert problems['counts'] == {'broken_utf8': 3, 'wrong_type': 1}
  for key, example in zip(good, problems['examples']):
    assert f"broken_utf8: '{key}'" in example


GIN = """
from __gin__ import dynamic_registration
from instructretro_jax.pipeline import experiment
from instructretro_jax.questions import instruction_sets
from instructretro_jax.questions import questions
instruction_sets.Dialogues.pattern = %FILES
questions.Questions.sets = (@instruction_sets.Dialogues(),)
questions.Questions.heldout_fraction = 1.0
experiment.Experiment.stages = (@questions.Questions(),)
FILES = %gin.REQUIRED
"""


def run(tmp_path, path):
  (tmp_path / 'sets.gin').write_text(GIN)
  given = [f'--gin_file={tmp_path / "sets.gin"}', f'--root={tmp_path}', f'--gin.FILES={path!r}']
  return CliRunner().invoke(main.main, ['run', *given])


def test_skipped_rows_are_said(write_rows, tmp_path):
  ask, say = {'role': 'user', 'content': 'Q?'}, {'role': 'assistant', 'content': 'A.'}
  rows = [{'messages': [ask, say]}, *[{'messages': [ask]}] * 2, {}]
  result = run(tmp_path, write_rows(rows))
  said = 'questions: 3 of 4 rows skipped (2 wrong_turns, 1 missing_turns), see manifest'
  assert result.exit_code == 0 and said in result.stderr.splitlines()


def test_a_set_without_a_usable_row_says_what_it_has_and_what_it_reads(write_rows, tmp_path):
  path = write_rows([{'id': n, 'dialog': []} for n in range(20)])
  result = run(tmp_path, path)
  assert isinstance(result.exception, StageError)
  assert str(result.exception).startswith(
    f'dialogues: {path}: no row of 20 could be used; their keys are id, dialog; this set reads '
    'messages or turns or conversations; the first is '
  )
  (tmp_path / 'rows.jsonl').write_text('{\n' * 3)
  with pytest.raises(StageError, match='no row to read: 3 of 3 rows skipped .3 not_json.'):
    read(Dialogues(path))


leaves = (
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
  | st.sampled_from(['\ud83d', '', 'A', 'yes', 'user', 'span', 'text'])
)  # fmt: skip
anything = st.recursive(
  leaves,
  lambda some: st.lists(some, max_size=3) | st.dictionaries(
    st.sampled_from(['text', 'title', 'role', 'content', 'from', 'value']), some, max_size=3
  ),
  max_leaves=6,
)  # fmt: skip
SAID = [{'role': 'user', 'content': 'a?'}, {'role': 'assistant', 'content': 'b.'}]
QUESTION = {'question': 'q?', 'passages': ['p'], 'answers': ['x'], 'options': ['x', 'y']}
MORE = {'history': ['a?', 'b.'], 'system': 'S.', 'style': 'span'}
THEIRS = {
  'question': 'q?',
  'answers': [{'text': 'x'}],
  'longform_answer': 'x',
  'ctxs': [{'title': 'T', 'text': 'p'}],
  'sub-paragraphs': ['T', 'p'],
  'sub_paragraph': 'p',
  'qa_type': 'multi_choice_qa',
  'multichoice_options': ['x', 'y'],
  'choices': {'text': ['x', 'y'], 'label': ['1', '2']},
  'answerKey': '1',
  'answer': {'value': 'x', 'aliases': ['X']},
  'label': 1,
  'title': 'T',
  'context': 'p',
}
ROWS = (
  (JsonLinesQuestions('x'), QUESTION | MORE),
  (QaFiles('x', 'qa'), THEIRS),
  (Dialogues('x'), {'messages': SAID, 'system': 'S.', 'answer': None, 'passages': []}),
  (InstructionRows('x'), {'instruction': 'Do.', 'input': '', 'output': 'Done.'}),
)


@GIVEN
@given(st.data())
def test_mutated_rows_are_read_or_refused_in_words(data):
  one, row = data.draw(st.sampled_from(ROWS))
  for key in data.draw(st.lists(st.sampled_from(list(row)), max_size=2)):
    row = row | {key: data.draw(anything)}
  try:
    found = one._question('rows:1', row)
  except Unusable as error:
    assert error.kind and error.detail and '\n' not in error.detail
  else:
    texts = json.dumps([dataclasses.asdict(found), found.identity], ensure_ascii=False)
    assert texts.encode() and found.answers
    assert not found.choices or set(found.answers) <= set(found.choices)

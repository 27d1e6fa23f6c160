"""Sets to tune on: what becomes a question, and what is reported."""

import json

import numpy as np
import pytest

from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.questions import instruction_sets
from instructretro_jax.questions.instruction_sets import (
  Dialogues,
  InstructionRows,
  QaFiles,
  TfdsQuestions,
  split_turns,
)
from instructretro_jax.questions.passage import untitled
from instructretro_jax.questions.questions import Question
from instructretro_jax.text.documents import Problems


def read(one):
  problems = Problems('skip')
  return list(one.read(problems)), problems.to_json()['counts']


@pytest.fixture
def write(tmp_path):
  def write(rows, is_array=False):
    path = tmp_path / 'rows.json'
    path.write_text(json.dumps(rows, indent=1) if is_array else '\n'.join(map(json.dumps, rows)))
    return str(path)

  return write


def messages(*contents, first='user'):
  roles = ['user', 'assistant'] if first == 'user' else ['assistant', 'user']
  return [{'role': roles[n % 2], 'content': text} for n, text in enumerate(contents)]


def test_dialogues(write):
  system = [{'role': 'system', 'content': 'S.'}]
  rows = [
    {'messages': messages('a?', 'b.', 'c?', 'd.')},
    {'turns': messages('a?'), 'answer': 'b.', 'passages': ['p', 'q'], 'system': 'S.'},
    {'messages': system + messages('a?', 'b.')},
    {'messages': messages('a?', 'b.', 'c?')},
    {'messages': messages('a?', 'b.', first='assistant')},
    {'messages': []},
    {'messages': ['a?', 'b.']},
    {'turns': messages('a?', 7)},
    {'turns': messages('a?', 'b.'), 'passages': 'p'},
    {'turns': messages('a?', ' ')},
  ]
  found, problems = read(Dialogues(write(rows), 'chat'))
  fields = ('chat', 'given')
  assert found == [
    Question('chat:rows.json:1', 'c?', (), ('d.',), *fields, history=('a?', 'b.')),
    Question('chat:rows.json:2', 'a?', untitled('p', 'q'), ('b.',), *fields, system='S.'),
    Question('chat:rows.json:3', 'a?', (), ('b.',), *fields, system='S.'),
    Question('chat:rows.json:9', 'a?', untitled('p'), ('b.',), *fields),
  ]
  assert problems == {'empty': 1, 'missing_turns': 1, 'wrong_turns': 3, 'wrong_type': 1}


@pytest.mark.parametrize('is_array', [False, True])
def test_instructions(write, is_array):
  rows = [
    {'instruction': 'Do.', 'input': '', 'output': 'Done.'},
    {'instruction': 'Add.', 'input': '1 2', 'output': '3'},
    {'instruction': 'Add.', 'output': None},
    {'instruction': ' ', 'output': 'x'},
  ]
  found, problems = read(InstructionRows(write(rows, is_array)))
  assert [(q.question, q.answers) for q in found] == [('Do.', ('Done.',)), ('Add.\n\n1 2', ('3',))]
  assert {q.style for q in found} == {'given'} and problems == {'empty': 1, 'wrong_type': 1}
  rows = [{'instruction': 'Add.', 'context': '1 2', 'response': '3'}]
  dolly = InstructionRows(write(rows), 'dolly', input_key='context', output_key='response')
  assert read(dolly)[0][0] == Question(
    'dolly:rows.json:1', 'Add.\n\n1 2', (), ('3',), 'dolly', 'given'
  )


def test_qa_files(write):
  contexts = [{'title': 'T', 'text': 'one'}, {'title': '', 'text': 'two'}, {'text': 'three'}]
  choice = {'qa_type': 'multi_choice_qa', 'multichoice_options': ['red', 'blue']}
  rows = [
    {'question': 'q?', 'answers': ['x', {'text': 'y'}, 'x'], 'ctxs': contexts},
    {'question': 'q?', 'answer': 'x', 'sub-paragraphs': ['T', 'one']},
    {'question': 'q?', 'answers': [], 'longform_answer': {'text': 'x'}, 'sub_paragraph': 'one'},
    {'question': 'q?', 'answer': 'blue', **choice},
    {'question': 'User: a?\n\nAssistant: b.\n\nUser: c?\n\nAssistant:', 'answer': 'd'},
    {'question': 'q?', 'answer': 'green', **choice},
    {'question': 'q?', 'answers': []},
    {'question': '', 'answer': 'x'},
    {'question': 'q?', 'answer': 'x', 'ctxs': [{'title': 'T'}]},
    {'question': 'User: a?\nAssistant: b.', 'answer': 'c'},
  ]
  found, problems = read(QaFiles(write(rows, is_array=True), 'qa', max_passages=2))
  assert [(q.shown_passages, q.answers, q.style) for q in found] == [
    (('title: T, source: one', 'two'), ('x', 'y'), 'span'),
    (('title: T, source: one',), ('x',), 'span'),
    (('one',), ('x',), 'span'),
    ((), ('B',), 'option'),
    ((), ('d',), 'given'),
  ]
  assert found[3].options == ('red', 'blue')
  assert (found[4].question, found[4].history) == ('c?', ('a?', 'b.'))
  assert problems == {
    'missing_answer': 1, 'missing_question': 1, 'wrong_answer': 1, 'wrong_turns': 1, 'wrong_type': 1
  }  # fmt: skip
  assert found[0].id == 'qa:rows.json:1'
  with pytest.raises(ValueError, match='rhyme'):
    QaFiles('x', 'qa', 'rhyme')


@pytest.mark.parametrize(
  'text, turns',
  [
    ('Is User: a name?', ['Is User: a name?']),
    ('User: a?', ['a?']),
    ('User: a?\n\nAssistant: b\nc.\n\nUser: d?\n\nAssistant:', ['a?', 'b\nc.', 'd?']),
    ('User: a?\nUser: b?', ['User: a?\nUser: b?']),
    ('Assistant: a.', ['Assistant: a.']),
  ],
)
def test_split_turns(text, turns):
  assert split_turns(text) == turns


def test_tfds(tmp_path):
  tf = pytest.importorskip('tensorflow')
  tfds = pytest.importorskip('tensorflow_datasets')
  folder = tmp_path / 'asked' / '1.0.0'
  folder.mkdir(parents=True)
  text = tfds.features.Text()
  features = tfds.features.FeaturesDict(
    {'question': text, 'context': text, 'answers': tfds.features.Sequence({'text': text})}
  )
  rows = [('a?', 'p', ['x', 'y', 'x']), ('b?', 'p', []), (b'\xff', 'p', ['x'])]
  with tf.io.TFRecordWriter(str(folder / 'asked-train.tfrecord-00000-of-00001')) as writer:
    for question, context, answers in rows:
      example = {'question': question, 'context': context, 'answers': {'text': answers}}
      writer.write(features.serialize_example(features.encode_example(example)))
  template = tfds.core.ShardedFileTemplate(
    data_dir=folder, dataset_name='asked', split='train', filetype_suffix='tfrecord'
  )
  split = tfds.core.SplitInfo('train', shard_lengths=[3], num_bytes=0, filename_template=template)
  tfds.folder_dataset.write_metadata(data_dir=folder, features=features, split_infos=[split])
  fields = dict(passage_key='context', style='span', data_dir=str(tmp_path))
  found, problems = read(TfdsQuestions('asked', 'squad', answer_key='answers/text', **fields))
  assert [(q.question, q.shown_passages, q.answers) for q in found] == [('a?', ('p',), ('x', 'y'))]
  assert found[0].id.startswith('squad:tfds:asked:') and str(tmp_path) not in found[0].id
  assert problems == {'broken_utf8': 1, 'missing_text': 1}
  asked = TfdsQuestions('asked', 'squad', answer_key='answers/text', unanswered='', **fields)
  found, problems = read(asked)
  assert [q.answers for q in found] == [('x', 'y'), ('',)] and problems == {'broken_utf8': 1}
  with pytest.raises(
    StageError, match='no row of 3 could be used; their keys are answers, context'
  ):
    read(TfdsQuestions('asked', 'squad', answer_key='answers/no', **fields))


@pytest.mark.packages
def test_packaged_summaries():
  sets = (instruction_sets.XSum(), instruction_sets.MultiLexSum())
  read = [list(one.read(Problems('refuse'))) for one in sets]
  assert [len(found) for found in read] == [999, 868]
  for question in read[0] + read[1]:
    assert (question.question, question.style) == ('', 'summary')
    assert question.passages[0].text.strip() and question.answers[0].strip()
  assert np.mean([len(q.answers[0]) for q in read[0]]) < 0.1 * np.mean(
    [len(q.passages[0].text) for q in read[0]]
  )

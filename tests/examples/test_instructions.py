"""Rows of instructions: what is learnt, what shares a row, and the account of it."""

import collections

import numpy as np
import pytest

from instructretro_jax.examples.instructions import Instructions
from instructretro_jax.pipeline import manifest
from instructretro_jax.questions.passage import untitled
from instructretro_jax.questions.passage_windows import PassageNeighbours
from instructretro_jax.questions.prompts import Prompter
from instructretro_jax.questions.questions import Question
from tests.questions.test_passage_windows import Letters

C = 16


def ask(n, task='own', size=10, answer='so', **fields):
  passages = untitled(f'{task} {n} ' + 'P' * size)
  return Question(f'{task}{n}', f'Why {n}?', passages, (answer, 'no'), task, 'given', **fields)


def many(count=40, task='own'):
  sizes = np.random.default_rng(len(task)).integers(0, 120, count)
  return [ask(n, task, int(size), 'so' * (1 + n % 9), system='') for n, size in enumerate(sizes)]


def text(tokens):
  return ''.join(map(chr, tokens)).replace('\1', '|')


def dialogues(row):
  """What each dialogue of a row reads and learns, in order."""
  found = []
  for segment in range(1, row['segments'].max() + 1):
    here = row['segments'] == segment
    assert (np.diff(np.flatnonzero(here)) == 1).all()
    np.testing.assert_array_equal(row['positions'][here], np.arange(here.sum()))
    learnt = here & (row['loss_mask'] > 0)
    np.testing.assert_array_equal(row['tokens'][here][1:], row['targets'][here][:-1])
    found.append((text(row['tokens'][here]), text(row['targets'][learnt])))
  return found


def rows_of(source):
  batch = source.examples(np.arange(len(source)))
  return [{name: array[n] for name, array in batch.items()} for n in range(len(source))]


def test_loss_is_on_the_last_answer_and_its_end():
  question = ask(1, history=('Who?', 'I.'))
  (row,) = rows_of(Instructions([question], Letters(), 250))
  ((read, learnt),) = dialogues(row)
  assert learnt == ' so|'
  assert read.endswith('User: Why 1?\n\nAssistant: so') and 'Assistant: I.' in read
  assert (row['tokens'][row['segments'] == 0] == 0).all()


@pytest.mark.parametrize('reads', [False, True])
def test_a_packed_row_holds_what_its_dialogues_are_alone(reads):
  neighbours = PassageNeighbours(Letters(), C, 2) if reads else None
  build = lambda is_packed: Instructions(
    many(), Letters(), 32 * C, neighbours=neighbours, is_packed=is_packed
  )
  alone, packed = rows_of(build(False)), rows_of(build(True))
  assert len(alone) == 40 and len(packed) < 20
  split = lambda rows: sorted(one for row in rows for one in dialogues(row))
  assert split(packed) == split(alone) and all(len(dialogues(row)) == 1 for row in alone)


def test_neighbours_are_those_of_the_dialogue_and_answers_begin_chunks():
  letters = Letters()
  questions = {q.question: q for q in many()}
  neighbours = PassageNeighbours(letters, C, 2)
  source = Instructions(
    list(questions.values()), letters, 32 * C, neighbours=neighbours, is_packed=True
  )
  for row in rows_of(source):
    used = np.zeros(32, bool)
    for segment, (read, _) in enumerate(dialogues(row), 1):
      places = np.flatnonzero(row['segments'] == segment)
      first_learnt = places[row['loss_mask'][places] > 0][0]
      assert (first_learnt + 1) % C == 0  # the token after it is the first of the answer
      question = questions[read.split('User: ')[1].split('\n')[0]]
      expected = neighbours.of(question)
      chunks = np.unique(places // C)
      assert not used[chunks].any()
      used[chunks] = True
      for chunk in chunks:
        np.testing.assert_array_equal(row['neighbours'][chunk], expected.tokens_KR)
        np.testing.assert_array_equal(row['neighbour_mask'][chunk], expected.mask_KR)
    assert not row['neighbour_mask'][~used].any()


@pytest.mark.parametrize('reads', [False, True])
@pytest.mark.parametrize('is_packed', [False, True])
def test_the_account_is_of_the_rows(reads, is_packed):
  neighbours = PassageNeighbours(Letters(), C, 2) if reads else None
  long = [ask(90, size=900), ask(91, size=0, system='S' * 900)]
  turns = ask(92, size=0, history=('H' * 200, 'I.', 'J' * 20, 'K.'), system='')
  questions = many() + long + [turns]
  source = Instructions(questions, Letters(), 12 * C, neighbours=neighbours, is_packed=is_packed)
  rows, counts = rows_of(source), source.counts
  found = [one for row in rows for one in dialogues(row)]
  assert counts['rows'] == len(rows) and counts['questions'] == len(found) == 42
  assert counts['questions_by_task'] == {'own': 42}
  answers = sum(int(row['loss_mask'].sum()) for row in rows)
  assert counts['answer_tokens'] == answers
  inputs = sum(int((row['segments'] > 0).sum()) for row in rows)
  assert counts['prompt_tokens'] + answers - len(found) == inputs
  assert counts['padding'] == len(rows) * 12 * C - inputs
  assert counts['left_out'] == 1 and counts['not_drawn'] == 0
  assert (counts['dialogues_cut'], counts['turns_cut']) == (1, 2)
  prompter = Prompter(Letters())
  room = 12 * C + 1 - len(prompter.answer(long[0], 'so'))
  room -= room % C if reads else 0
  cut = len(prompter.prompt(long[0], 10_000).tokens) - room
  assert (counts['passages_cut'], counts['passage_tokens_cut']) == (1, cut)


def test_a_question_that_does_not_fit_is_left_out():
  source = Instructions([ask(1, size=500)], Letters(), 30)
  assert len(source) == 0 and source.counts['left_out'] == 1


@pytest.mark.parametrize('is_packed', [False, True])
def test_rates_are_shares_of_dialogues(is_packed):
  questions = many(60, 'long ones') + many(30, 'b') + many(20, 'never')
  questions += [ask(n, 'short', 0, system='') for n in range(50)]
  rates = (('short', 0.2), ('b', 0.1), ('long ones', 0.7))
  source = Instructions(questions, Letters(), 400, is_packed=is_packed, rates=rates)
  assert source.counts['not_drawn'] == 20 and source.counts['questions'] == 140
  drawn = source.examples(source.ids(3, np.arange(4000)))
  num_dialogues = drawn['segments'].max(axis=1)
  assert (num_dialogues.max() > 1) == is_packed
  counts = collections.Counter()
  for row, num in zip(drawn['tokens'], num_dialogues.tolist()):
    tasks = [task for task, _ in rates if f'{task} ' in text(row[row > 0])]
    assert len(tasks) == 1  # a row is of one task
    counts[tasks[0]] += num
  for task, rate in rates:
    # of whole epochs it is exact; the last epoch of each task is not whole
    assert counts[task] / counts.total() == pytest.approx(rate, abs=2e-3)
  later = source.examples(source.ids(3, np.arange(1500, 1510)))
  np.testing.assert_array_equal(later['tokens'], drawn['tokens'][1500:1510])


def test_a_rate_without_questions_is_an_error():
  with pytest.raises(manifest.StageError, match=r"\['soda'\].*'own': 1"):
    Instructions([ask(1)], Letters(), 400, rates=(('own', 0.5), ('soda', 0.5)))


def test_rows_must_be_whole_chunks():
  with pytest.raises(ValueError, match='30 is no multiple of the chunk length 16'):
    Instructions([], Letters(), 30, neighbours=PassageNeighbours(Letters(), C, 2))

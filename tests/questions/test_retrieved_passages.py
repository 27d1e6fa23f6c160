"""Passages found for questions."""

import dataclasses
import json

import pytest

from instructretro_jax.pipeline import stage
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.questions.passage_windows import read_passages
from instructretro_jax.questions.questions import Question, Questions
from instructretro_jax.questions.retrieved_passages import FindPassages, query_of
from instructretro_jax.retrieval.index_stage import BuildIndex
from instructretro_jax.retrieval.minilm import MiniLm
from instructretro_jax.retrieval.retriever import open_retriever
from instructretro_jax.text import vocabulary


@dataclasses.dataclass(frozen=True)
class Given:
  def read(self, problems):
    yield Question('q0', 'ape bee cat ', (), ('x',), 'own')
    yield Question('q1', 'dog ', (), ('x',), 'own', history=('fox ', 'gnu ', 'hen ', 'ibis '))


@pytest.fixture
def run(run_folder):
  stage.run(BuildIndex(recall_queries=4), run_folder)
  stage.run(Questions(sets=(Given(),), heldout_fraction=1.0), run_folder)
  return run_folder


def test_the_best_passages_share_no_chunk_and_dialogues_are_looked_up_with_their_last_turns(run):
  stage.run(FindPassages(splits=('heldout',), num_saved=4), run)
  lines = (run / 'passages' / 'heldout.jsonl').read_text().splitlines()
  found = {row['id']: row['passages'] for row in map(json.loads, lines)}
  texts = read_passages(run / 'passages', 'heldout')
  retriever = open_retriever(run, vocabulary.load(run / 'vocabulary'))
  for key, text in (('q0', 'ape bee cat '), ('q1', 'hen  ibis  dog ')):
    hits = retriever.find([text], 12)[0]
    expected = []
    for hit in hits:  # next to no better one
      near = [k for k in expected if k.document == hit.document]
      if not {hit.chunk_id - 1, hit.chunk_id + 1} & {k.chunk_id for k in near}:
        expected.append(hit)
    assert [p['chunk'] for p in found[key]] == [hit.chunk_id for hit in expected[:4]]
    assert texts[key] == [hit.text for hit in expected[:4]]
    assert found[key][0]['score'] == pytest.approx(expected[0].score, abs=1e-4)
  assert any(len(found[key]) > 1 for key in found)
  with pytest.raises(StageError, match='train.jsonl does not exist'):
    read_passages(run / 'passages', 'train')


def test_the_query_begins_with_the_question_and_keeps_the_last_words_before_it():
  history = ('a b', 'c d', 'e f g', 'h i j')
  question = Question('q', 'why ?', (), ('x',), 'own', history=history)
  assert query_of(question, 4) == 'why ? g h i j'
  assert query_of(question, 0) == 'why ?'
  assert query_of(question, 99) == 'why ? e f g h i j'
  with pytest.raises(ValueError, match='history_words=-1'):
    FindPassages(history_words=-1)


@pytest.mark.packages
def test_a_long_history_does_not_hide_the_question(tmp_path):
  told = 'The band played songs in London and toured many cities before the drummer left. '
  history = (told * 20, 'They did.')
  asked = ('who wrote the song?', 'when did they separate?')
  questions = [Question('q', one, (), ('x',), 'own', history=history) for one in asked]
  first, second = MiniLm().load(tmp_path)([query_of(q, 32) for q in questions])
  assert first @ second < 0.95  # 1 where the question is cut off

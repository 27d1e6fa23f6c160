"""Passages as neighbours."""

import json

import pytest

from instructretro_jax.pipeline import manifest
from instructretro_jax.questions.passage import untitled
from instructretro_jax.questions.passage_windows import PassageNeighbours, read_passages
from instructretro_jax.questions.questions import Question
from tests.text.letters import Letters


def texts(windows):
  return [
    ''.join(map(chr, tokens[mask])) for tokens, mask in zip(windows.tokens_KR, windows.mask_KR)
  ]


def ask(*passages):
  return Question('q', 'Why?', untitled(*passages), ('so',), 'own')


def test_passages_begin_in_the_first_windows_and_go_on_in_the_next():
  neighbours = PassageNeighbours(Letters(), 2, 3)
  windows = neighbours.of(ask('abcde', 'fg'))
  assert texts(windows) == ['abcd', 'fg', 'e'] and (windows.tokens_KR[2, 1:] == 0).all()
  assert texts(neighbours.of(ask('abcdefghi'))) == ['abcd', 'efgh', 'i']
  assert texts(neighbours.of(ask())) == ['', '', '']


def test_retrieved_passages_take_the_place_of_its_own(tmp_path):
  row = {'id': 'q', 'passages': [{'text': 'abcde', 'chunk': 3}, {'text': 'fg', 'chunk': 4}]}
  (tmp_path / 'train.jsonl').write_text(json.dumps(row) + '\n')
  found = read_passages(tmp_path, 'train')
  assert texts(PassageNeighbours(Letters(), 2, 3, found).of(ask('own'))) == ['abcd', 'fg', 'e']
  assert texts(PassageNeighbours(Letters(), 2, 1, found).of(ask('own'))) == ['abcd']
  with pytest.raises(manifest.StageError, match="question 'q'"):
    PassageNeighbours(Letters(), 2, 3, {}).of(ask())
  with pytest.raises(manifest.StageError, match='heldout.jsonl does not exist'):
    read_passages(tmp_path, 'heldout')

"""Passages as neighbours."""

import json

import pytest

from instructretro_jax import manifest
from instructretro_jax.data.passage_windows import PassageNeighbours, read_passages
from instructretro_jax.data.questions import Question


class Letters:
  pad_id, eos_id = 0, 1

  def encode(self, text):
    return [ord(c) for c in text]


def texts(windows):
  return [
    ''.join(map(chr, tokens[mask])) for tokens, mask in zip(windows.tokens_KR, windows.mask_KR)
  ]


def ask(*passages):
  return Question('q', 'Why?', passages, ('so',), 'own')


def test_own_passages_follow_one_another_through_the_windows():
  neighbours = PassageNeighbours(Letters(), 2, 3)
  windows = neighbours.of(ask('abcde', 'fg'))
  assert texts(windows) == ['abcd', 'e\n\nf', 'g'] and (windows.tokens_KR[2, 1:] == 0).all()
  assert texts(neighbours.of(ask())) == ['', '', '']


def test_each_retrieved_passage_has_a_window(tmp_path):
  row = {'id': 'q', 'passages': [{'text': 'abcde', 'chunk': 3}, {'text': 'fg', 'chunk': 4}]}
  (tmp_path / 'train.jsonl').write_text(json.dumps(row) + '\n')
  found = read_passages(tmp_path, 'train')
  assert texts(PassageNeighbours(Letters(), 2, 3, found).of(ask('own'))) == ['abcd', 'fg', '']
  assert texts(PassageNeighbours(Letters(), 2, 1, found).of(ask('own'))) == ['abcd']
  with pytest.raises(manifest.StageError, match="question 'q'"):
    PassageNeighbours(Letters(), 2, 3, {}).of(ask())
  with pytest.raises(manifest.StageError, match='heldout.jsonl does not exist'):
    read_passages(tmp_path, 'heldout')

"""Documents and the account of bad input."""

import pytest

from instructretro_jax.pipeline import manifest
from instructretro_jax.text.documents import Document, Problems


def test_a_document_without_group_is_its_own_group():
  assert Document('a', 'text', 's').group == 'a'
  assert Document('a', 'text', 's', 'g').group == 'g'


def test_skip_counts_all_and_keeps_the_first_examples():
  problems = Problems('skip', max_examples=2)
  for line in (3, 5, 8):
    problems.report('not_json', f'a.jsonl:{line}', 'no')
  problems.report('empty', 'b.jsonl:1', 'nothing')
  found = problems.to_json()
  assert found['counts'] == {'empty': 1, 'not_json': 3}
  assert [example.split(': ')[0] for example in found['examples']] == ['a.jsonl:3', 'a.jsonl:5']


def test_refuse_names_place_detail_and_remedy():
  with pytest.raises(manifest.StageError, match=r"a\.jsonl:3.*no brace.*on_bad_input = 'skip'"):
    Problems('refuse').report('not_json', 'a.jsonl:3', 'no brace')


@pytest.mark.parametrize(
  'text, kind', [(' \n', 'empty'), ('\ud800', 'broken_utf8'), ('ééé', 'too_long')]
)
def test_unusable_texts(text, kind):
  problems = Problems(max_document_bytes=5)
  assert not problems.accepts(text, 'f:1')
  assert problems.to_json()['counts'] == {kind: 1}


def test_the_limit_counts_bytes_and_is_allowed_itself():
  problems = Problems(max_document_bytes=4)
  assert problems.accepts('éé', 'f:1')
  assert problems.to_json() == {'counts': {}, 'examples': []}


def test_impossible_arguments_are_rejected():
  with pytest.raises(ValueError, match='ignore'):
    Problems('ignore')
  with pytest.raises(ValueError, match='max_document_bytes=0'):
    Problems(max_document_bytes=0)

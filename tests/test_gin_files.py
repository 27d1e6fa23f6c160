"""Fragments: the map names them all, and what a phase says of its macros is so."""

from pathlib import Path
import re

import pytest

GIN = Path(__file__).resolve().parents[1] / 'gin'
# files whose header lists what they require, what may be overridden, and what they define
LISTED = [
  *sorted((GIN / 'phases').glob('*.gin')),
  GIN / 'paper/common.gin',
  GIN / 'paper/retrieval.gin',
]
MACRO = r'\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)*\b'


def test_the_map_has_a_line_for_each_file_and_no_other():
  named = re.findall(r'^\| `(\S+\.gin)` \|', (GIN / 'README.md').read_text(), re.M)
  assert sorted(named) == sorted(str(p.relative_to(GIN)) for p in GIN.rglob('*.gin'))


def split(path):
  """The header's lists by name, and the statements without comments."""
  text = path.read_text()
  header = text[: text.index('from __gin__')]
  found = re.split(r'^# (REQUIRED|May be overridden|Defines)[^:\n]*:', header, flags=re.M)[1:]
  lists = {}
  for name, content in zip(found[::2], found[1::2]):
    lists[name] = lists.get(name, '') + content
  return lists, re.sub(r'#.*', '', text[len(header) :])


@pytest.mark.parametrize('path', LISTED, ids=lambda p: f'{p.parent.name}-{p.stem}')
def test_a_header_lists_the_macros_of_its_file(path):
  lists, body = split(path)
  assert list(lists) == ['REQUIRED', 'May be overridden', 'Defines']
  values = dict(re.findall(r'^([A-Z][A-Z0-9_]*) = (.+)$', body, re.M))
  hints = {name for name, value in values.items() if 'REQUIRED: ' in value}
  open_values = {'%gin.REQUIRED', *(f'%{name}' for name in hints)}
  required = {name for name, value in values.items() if value.strip() in open_values}
  used = set(re.findall(r'%([A-Z][A-Z0-9_]*)', body)) - hints
  listed = set(re.findall(MACRO, lists['REQUIRED']))
  assert required <= listed
  overridable = set(re.findall(MACRO, lists['May be overridden']))
  assert overridable == set(values) - required - hints
  # what it reads without setting it comes from another file, which the header may include
  included = ''.join((GIN.parent / i).read_text() for i in re.findall(r"include '(\S+)'", body))
  assert used - set(values) <= listed | set(re.findall(MACRO, included))


def test_a_chunk_length_is_given_by_models_alone():
  for path in GIN.rglob('*.gin'):
    assert not re.search(r'chunk_len = \d', path.read_text()), path
    assert ('\nCHUNK_LEN = ' in path.read_text()) == (path.parent.name == 'models'), path

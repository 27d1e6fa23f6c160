"""The corpora that come with packages."""

import pytest

from instructretro_jax.text import corpora
from instructretro_jax.text.documents import Problems


@pytest.mark.parametrize(
  'markup, text',
  [
    ('plain  text\n', 'plain text'),
    ('<p>one</p><p>two</p>', 'one two'),
    ('an <code>inner</code>.', 'an inner.'),
    ('&lt;name&gt; &amp;amp;', '<name> &amp;'),
    ('a&nbsp;b', 'a b'),
    ('x<!-- hidden -->y', 'xy'),
    ('a < b', 'a < b'),
    ('<p>open', 'open'),
    ('<br>', ''),
    ('', ''),
  ],
)
def test_strip_html(markup, text):
  assert corpora.strip_html(markup) == text


def test_impossible_arguments_are_rejected():
  with pytest.raises(ValueError, match='operation'):
    corpora.BotocorePages(1, group_by='operation')
  with pytest.raises(ValueError, match='num_pages=0'):
    corpora.BotocorePages(0)


@pytest.mark.packages
def test_factbook():
  documents = {d.id: d for d in corpora.Factbook().read(Problems('refuse'))}
  assert len(documents) == 256
  lines = documents['factbook/south-asia/pk'].text.splitlines()
  assert lines[0] == 'Pakistan'
  assert 'Area - land: 770,875 sq km' in lines
  titles = {d.text.splitlines()[0] for d in documents.values()}
  assert len(titles) == 256 and 'none' not in titles
  assert not any('<p>' in d.text or '&nbsp;' in d.text for d in documents.values())


@pytest.mark.packages
def test_botocore_pages_nest_and_group():
  few = list(corpora.BotocorePages(20).read(Problems('refuse')))
  more = list(corpora.BotocorePages(60, group_by='service').read(Problems('refuse')))
  assert [d.id for d in more[:20]] == [d.id for d in few]
  assert [d.text for d in more[:20]] == [d.text for d in few]
  assert all(d.group == d.id for d in few)
  assert all(d.group == d.id.rsplit('/', 1)[0] for d in more)


def test_a_botocore_page_reads_as_specified():
  api = {
    'operations': {
      'Put': {
        'documentation': '<p>Puts.</p>',
        'input': {'shape': 'In'},
        'errors': [{'shape': 'Gone'}, {'shape': 'Late'}],
      }
    },
    'shapes': {
      'In': {
        'type': 'structure',
        'members': {
          'Key': {'shape': 'Name', 'documentation': 'The &quot;key&quot;.'},
          'Bare': {'shape': 'Name'},
          'Size': {'shape': 'Count'},
        },
      },
      'Name': {'type': 'string'},
      'Count': {'type': 'integer', 'documentation': '<b>Bytes</b>'},
    },
  }
  assert corpora._page(api, 's3', 'Put').splitlines() == [
    's3: Put',
    'Puts.',
    'Key (string): The "key".',
    'Bare (string)',
    'Size (integer): Bytes',
    'Errors: Gone, Late',
  ]

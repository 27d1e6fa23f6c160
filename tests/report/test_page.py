"""The page is complete, escaped, self-contained and the same every time."""

import dataclasses
from html.parser import HTMLParser
import json
import re

import pytest

from instructretro_jax.pipeline import stage
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.report import hyperparameters, page, tables
from instructretro_jax.report.categories import CATEGORIES
from instructretro_jax.report.stage import read_curve
from tests.report import synthetic

_VOID = {'meta', 'link', 'br', 'img', 'hr', 'input'}


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  """Folder of a finished report."""
  root = tmp_path_factory.mktemp('run')
  synthetic.write_run(root)
  stage.run(synthetic.REPORT, root)
  return root / 'report'


def test_hostile_text_is_escaped(built):
  text = (built / 'index.html').read_text()
  assert synthetic.SCRIPT not in text
  # passage id, token, neighbour source, neighbour text, and a name among the statistics
  assert text.count('&lt;script&gt;alert(1)&lt;/script&gt;') >= 5
  assert text.count('<script>') == 1  # ours


def test_every_number_of_the_headline_table_is_on_the_page(built):
  text = (built / 'index.html').read_text()
  report = json.loads((built / 'report.json').read_text())
  headline = [row for row in report['perplexity'] if row['category'] in CATEGORIES]
  assert len(headline) == 16
  for row in headline:
    low, high = map(tables.format_number, (row['low'], row['high']))
    assert f'>{tables.format_number(row["perplexity"])}<small>{low}–{high}</small>' in text
    if row['bits_per_byte'] is not None:
      assert f'>{row["bits_per_byte"]:.3f}<' in text
  for check in report['checks']:
    assert tables.check_line(check) in text
  assert len(report['headline']) == 3
  for figure in report['headline']:
    assert f'>{figure["name"]}<small>{figure["detail"]}</small>' in text
    assert f'>{figure["meaning"]}<' in text


def test_page_needs_nothing_else(built):
  text = (built / 'index.html').read_text()
  assert not re.search(r'\b(src|srcset)=|<link|@import|url\((?!#)', text)
  references = re.findall(r'href="([^"]*)"', text)
  assert references and all(r.startswith('#') for r in references)
  assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text


def test_tags_are_balanced_and_ids_unique(built):
  checker = _Checker()
  checker.feed((built / 'index.html').read_text())
  assert not checker.open
  assert len(checker.ids) == len(set(checker.ids))


def test_what_each_arm_was_asked_is_on_the_page(built):
  asked = json.loads((built / 'report.json').read_text())['hyperparameters']
  assert list(asked) == list(synthetic.ARMS)
  differ, common = hyperparameters.tables(asked)
  words = lambda rows: [tuple(cell.text for cell in row) for row in rows]
  assert words([differ.columns]) == [('setting', *synthetic.ARMS)]
  assert words(differ.rows) == [('num_steps', '600', '60', '60', '60', '60')]
  assert words(common.rows) == [
    ('init_from', synthetic.SCRIPT), ('optimizer.betas', '[0.9, 0.95]'),
    ('optimizer.class', 'AdamW'), ('seed', '7'),
  ]  # fmt: skip
  page = (built / 'index.html').read_text()
  assert differ.title in page and '[0.9, 0.95]' in page
  # a setting that one arm alone has; none where there is one arm
  assert words(hyperparameters.tables({'a': {'x': None}, 'b': {}, 'c': {'x': True}})[0].rows) == [
    ('x', '–', '–', 'true')
  ]
  assert [t.title for t in hyperparameters.tables({'a': {'x': 1}})] == [common.title]


def test_held_out_curves_stand_beside_the_training_loss(built):
  report = json.loads((built / 'report.json').read_text())
  found = report['heldout_curves']
  assert set(found['retro_fit']) == {'own', 'off', 'random'} and not found['gpt_fit']
  assert [step for step, _ in found['retro_fit']['own']] == [20, 40, 60]
  page = (built / 'index.html').read_text()
  assert page.count('retro_fit, held out, random neighbours') == 1


def test_curves_leave_speed_out_and_are_averaged(built):
  text = (built / 'report.json').read_text()
  assert 'tokens_per_s' not in text
  curves = json.loads(text)['curves']
  assert list(curves) == list(synthetic.ARMS)
  assert len(curves['gpt_fit']) == 60 and curves['gpt_fit'][-1][0] == 60
  assert len(curves['pretrain']) == 200 and curves['pretrain'][0][0] == 3


def test_two_builds_give_the_same_bytes(built, tmp_path):
  synthetic.write_run(tmp_path)
  stage.run(synthetic.REPORT, tmp_path)
  for name in ('report.json', 'index.html'):
    assert (tmp_path / 'report' / name).read_bytes() == (built / name).read_bytes()


def test_failed_check_is_said_in_words_and_stops_nothing(tmp_path, capsys):
  synthetic.write_run(tmp_path, retro_own=30.0)
  counts = stage.run(synthetic.REPORT, tmp_path).counts
  assert counts == {'checks_passed': 1, 'checks': 2}
  line = 'FAILED: perplexity of retro_fit with its neighbours below gpt_fit: 4.5 % found'
  assert line in (tmp_path / 'report' / 'index.html').read_text()
  printed = ' '.join(capsys.readouterr().out.split())
  assert line in printed
  assert f'Report: {tmp_path / "report" / "index.html"}' in printed


def test_a_run_without_questions_has_no_section_on_them(tmp_path, capsys):
  synthetic.write_run(tmp_path)
  stage.run(dataclasses.replace(synthetic.REPORT, questions=None), tmp_path)
  assert 'uestions' not in (tmp_path / 'report' / 'index.html').read_text().split('</nav>')[0]
  assert 'id="questions"' not in (tmp_path / 'report' / 'index.html').read_text()
  printed = capsys.readouterr().out
  assert 'Questions' not in printed and 'F1' not in printed and 'retrieval helps' in printed


def test_a_run_of_questions_alone_has_no_other_section(tmp_path, capsys):
  synthetic.write_run(tmp_path)
  stage.run(dataclasses.replace(synthetic.REPORT, perplexity=None, arms=()), tmp_path)
  text = (tmp_path / 'report' / 'index.html').read_text()
  checker = _Checker()
  checker.feed(text)
  assert not checker.open and set(checker.ids) == {'headline', 'questions', 'retrieval'}
  printed = capsys.readouterr().out
  assert 'erplexity' not in printed and '+3.0 points' in printed


def test_a_folder_of_perplexity_without_sequences_is_refused_with_the_remedy(tmp_path):
  synthetic.write_run(tmp_path)
  (tmp_path / 'perplexity' / 'sequences.json').unlink()
  with pytest.raises(StageError, match='sequences.json is missing: rebuild with --rebuild=perpl'):
    stage.run(synthetic.REPORT, tmp_path)


def test_missing_log_is_refused(tmp_path):
  with pytest.raises(StageError, match='holds no losses: rebuild with --rebuild=gpt_fit'):
    read_curve(tmp_path / 'gpt_fit')


@pytest.mark.parametrize(
  'gain, name', [(None, ''), (0.05, ''), (0.1, 'g1'), (-0.7, 'l2'), (3.0, 'g4'), (-9.0, 'l5')]
)
def test_shade_of_a_token(gain, name):
  assert page.shade(gain) == name


def test_marks_keep_every_character():
  pieces = list(page.split_marks('abcdefgh', [[0, 2], [5, 7]]))
  assert ''.join(piece for _, piece in pieces) == 'abcdefgh'
  assert [piece for is_shared, piece in pieces if is_shared] == ['ab', 'fg']


class _Checker(HTMLParser):
  """Follows the nesting of tags; fails at the first that closes another one."""

  def __init__(self):
    super().__init__()
    self.open, self.ids = [], []

  def handle_starttag(self, tag, attrs):
    self.ids += [value for name, value in attrs if name == 'id']
    if tag not in _VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.ids += [value for name, value in attrs if name == 'id']

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

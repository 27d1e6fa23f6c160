"""Tables say what the rows say, and fit a console."""

import io

import pytest
from rich.console import Console

from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.report import figures, tables
from instructretro_jax.report.checks import checks
from tests.report import synthetic


def test_perplexity_table_has_a_row_per_arm_and_mode():
  table = tables.perplexity_table(synthetic.perplexity_rows())
  assert [(row[0].text, row[0].note) for row in table.rows] == [
    ('gpt_fit', 'retrieval off'),
    ('retro_fit', 'own neighbours'),
    ('retro_fit', 'retrieval off'),
    ('retro_fit', 'random neighbours'),
  ]
  assert [c.text for c in table.columns] == [
    'arm', 'all', 'copyable', 'other', 'first chunk', 'bits'
  ]  # fmt: skip
  assert table.columns[2].note == '3,996 tok'
  assert table.rows[0][1] == tables.Cell('31.42', '30.47–32.67')
  assert table.rows[0][5] == tables.Cell('1.243')


def test_a_category_without_tokens_leaves_a_gap():
  rows = [
    row
    for row in synthetic.perplexity_rows()
    if row['category'] != 'run_32_64' and (row['arm'], row['category']) != ('gpt_fit', 'run_0_3')
  ]
  table = tables.run_table(rows)
  assert [c.text for c in table.columns] == ['arm', '0–3', '4–7', '8–15', '16–31']
  assert table.rows[0][1] == tables.Cell('–')
  assert table.rows[1][1].text != '–'


def test_question_tables_put_each_value_under_its_task():
  exact, f1, _ = tables.question_tables(synthetic.question_rows())
  assert [c.note for c in exact.columns] == ['', '150 questions', '100 questions', '50 questions']
  assert [row[0].note for row in exact.rows] == [
    'question only',
    '5 passages, encoder off',
    '5 passages, encoder off',
    '5 passages, encoder on',
  ]
  assert [cell.text for cell in exact.rows[3][1:]] == ['19.50', '20.50', '21.50']
  assert f1.rows[0][2] == tables.Cell('17.75', '15.25–20.50')


def test_differences_are_a_table_per_kind():
  rows = synthetic.question_rows()
  for row in rows:
    row.pop('difference', None)
  found = {'value': 3.5, 'low': 1.0, 'high': 6.0, 'count': 100}
  for row in rows:
    row |= {'from_passages': found} if row['passages'] else {}
    row |= {'difference': {'against': 'gpt', **found}} if row['encoder'] == 'on' else {}
  gains, above = tables.question_tables(rows)[2:]
  assert 'F1 above the same arm without passages' in gains.title and len(gains.rows) == 3
  assert 'F1 above gpt with as many passages' in above.title and len(above.rows) == 1
  assert above.rows[0][1] == tables.Cell('3.50', '1.00–6.00')


def test_statistics_are_flattened_and_readable():
  counts = {'train': {'documents': 12345, 'share_with_2': 0.98765}, 'kind': 'exact', 'runs': [1, 2]}
  table = tables.statistics_table('corpus', counts)
  assert [(key.text, value.text) for key, value in table.rows] == [
    ('train · documents', '12,345'),
    ('train · share with 2', '0.9877'),
    ('kind', 'exact'),
    ('runs', '1, 2'),
  ]


@pytest.mark.parametrize(
  'value, text',
  [
    (None, '–'),
    (9.876, '9.88'),
    (99.999, '100.00'),
    (1234.56, '1,234.6'),
    (7, '7'),
    (-0.5, '−0.50'),
  ],
)
def test_numbers_keep_about_four_digits(value, text):
  assert tables.format_number(value) == text


def test_console_tables_fit_80_columns_and_end_with_the_figures_and_checks():
  rows = synthetic.perplexity_rows()
  changes = figures.perplexity_changes(synthetic.sequence_rows(rows), 'gpt_fit')
  questions = synthetic.question_rows(('boolq', 'disflqa', 'narrativeqa', 'natural_questions'))
  report = {
    'headline': figures.headline(changes, questions, 'retro_fit'),
    'perplexity': rows,
    'questions': questions,
    'checks': checks(rows, 'gpt_fit', 'retro_fit'),
  }
  out = io.StringIO()
  tables.print_tables(report, Console(file=out, width=80))
  text = out.getvalue()
  assert max(map(len, text.splitlines())) <= 80
  for whole in ('random neighbours', '5 passages, encoder off', '30.47–32.67', 'exact match'):
    assert whole in text  # nothing was folded or cut
  assert '…' not in text
  end = text[text.index('The figures that matter') :]
  for whole in ('−38.7 %', 'retrieval helps', '+30.9 %', '+3.0 points', '−0.5 to +6.2'):
    assert whole in end
  assert end.index('no clear difference') < end.index('passed: perplexity of retro_fit')


def test_checks_compare_the_right_systems():
  helps, matters = checks(synthetic.perplexity_rows(), 'gpt_fit', 'retro_fit')
  assert helps['value'] == pytest.approx(100 * (1 - 19.2718 / 31.4159), abs=0.01)
  assert matters['value'] == pytest.approx(100 * (41.1213 / 33.5772 - 1), abs=0.01)
  assert helps['passed'] and matters['passed']


def test_check_of_an_arm_that_was_not_evaluated_is_refused():
  with pytest.raises(StageError, match='no perplexity of retro_two with neighbours=own'):
    checks(synthetic.perplexity_rows(), 'gpt_fit', 'retro_two')

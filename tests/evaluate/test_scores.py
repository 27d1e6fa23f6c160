"""Rows of results from records."""

import pytest

from instructretro_jax.evaluate.scores import System, score_rows


def records(*values, task='qa', metric='f1'):
  return [{'task': task, 'scores': {metric: value}} for value in values]


def test_rows_hold_means_by_task_and_differences_question_by_question():
  plain, tuned = System('gpt', 'off', 5), System('retro', 'on', 5)
  alone = System('retro', 'off', 0)
  rows = score_rows(
    {
      plain: records(0.0, 0.5) + records(1.0, task='other'),
      tuned: records(0.5, 1.0) + records(1.0, task='other'),
      alone: records(0.0, 0.5) + records(1.0, task='other'),
    },
    'gpt',
  )
  found = {(row['arm'], row['passages'], row['task']): row for row in rows}
  assert found['gpt', 5, 'qa']['value'] == 25 and found['gpt', 5, 'all']['value'] == 50
  assert 'difference' not in found['gpt', 5, 'qa'] and 'difference' not in found['retro', 0, 'qa']
  difference = found['retro', 5, 'qa']['difference']
  assert difference == {'against': 'gpt', 'value': 50, 'low': 50, 'high': 50, 'count': 2}
  gains = {
    key: row['from_passages']['value'] for key, row in found.items() if 'from_passages' in row
  }
  assert gains['retro', 5, 'qa'] == 50 and gains['retro', 5, 'other'] == 0 and len(gains) == 3
  assert found['retro', 5, 'qa']['encoder'] == 'on' and len(rows) == 9


def test_rouge_is_summed_up_by_its_geometric_mean():
  scores = {'rouge1': 0.4, 'rouge2': 0.1, 'rougeL': 0.4}
  rows = score_rows({System('a', 'off', 0): [{'task': 's', 'scores': scores}]}, 'a')
  means = {row['metric']: row['value'] for row in rows if row['task'] == 's'}
  assert means['rouge_mean'] == pytest.approx(100 * (0.4 * 0.1 * 0.4) ** (1 / 3), abs=0.01)

"""The figures that matter: who is held against whom, and what is said of it."""

import math

import pytest

from instructretro_jax.report.figures import headline, perplexity_changes
from tests.report import synthetic


def changes_of(**values):
  """Changes against `plain`; a value is the perplexity of the arm with its own neighbours."""
  systems = {('plain', 'off'): 20.0, **{(arm, 'own'): value for arm, value in values.items()}}
  rows = [
    {'arm': arm, 'neighbours': kind, 'category': 'all', 'nats': math.log(value)}
    for (arm, kind), value in systems.items()
  ]
  return perplexity_changes(synthetic.sequence_rows(rows), 'plain')


def test_pairs_show_what_intervals_side_by_side_hide():
  (change,) = changes_of(retro=19.0)
  # sequences differ by a factor of 7 in perplexity, the systems by 5 % on every one of them
  assert change['value'] == change['low'] == change['high'] == pytest.approx(-5)
  assert change['against'] == 'plain' and change['count'] == 12


def test_the_headline_of_a_whole_run_has_three_figures():
  rows = synthetic.sequence_rows(synthetic.perplexity_rows())
  own, random, answers = headline(
    perplexity_changes(rows, 'gpt_fit'), synthetic.question_rows(), 'retro_fit'
  )
  assert own['value'] == pytest.approx(100 * (19.2718 / 31.4159 - 1), abs=0.01)
  assert own['meaning'] == 'retrieval helps'
  assert random['value'] == pytest.approx(100 * (41.1213 / 31.4159 - 1), abs=0.01)
  assert random['meaning'].startswith('random ones do harm')
  assert answers['name'] == 'F1 of retro_instruct against gpt_instruct'
  assert answers['detail'] == 'all questions, 5 passages, encoder off'
  assert answers['meaning'] == 'no clear difference'  # the interval holds 0


def test_a_run_shows_what_it_has():
  changes = changes_of(retro=25.0, other=10.0)
  (figure,) = headline(changes, [], 'retro')
  assert figure['value'] == pytest.approx(25) and figure['meaning'] == 'retrieval does harm'
  assert headline(changes, [], 'absent') == []
  rows = [row for row in synthetic.question_rows() if 'difference' not in row]
  assert headline([], rows, 'retro') == []
  for row in rows:
    if row['passages']:
      row['from_passages'] = {'value': 3.5, 'low': 1.0, 'high': 6.0, 'count': 150}
  (figure,) = headline([], rows, 'retro')
  assert figure['name'] == 'F1 of retro_instruct against itself without passages'
  assert figure['meaning'] == 'answers are better'

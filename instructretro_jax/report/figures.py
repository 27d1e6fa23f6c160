"""The figures that matter: paired differences with their intervals, and what each of them means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructretro_jax.report.bootstrap import perplexity_change_with_interval

Row = Mapping[str, Any]

# what a figure means: of a fall, of a rise, and of an interval that holds 0
_RETRIEVAL = ('retrieval helps', 'retrieval does harm', 'no clear difference')
_CONTROL = (
  'random ones help too: the content of the neighbours is not the whole of it',
  'random ones do harm: the content of the neighbours is what counts',
  'random ones make no clear difference',
)
_ANSWERS = ('answers are worse', 'answers are better', 'no clear difference')


def perplexity_changes(sequences: Sequence[Row], baseline: str) -> list[dict[str, Any]]:
  """By how many percent each system's perplexity differs from the baseline's without retrieval.

  Paired by sequence, on the same tokens, with 95 % intervals; a row per system and kind of token.
  """
  plain = {
    row['category']: row
    for row in sequences
    if (row['arm'], row['neighbours']) == (baseline, 'off')
  }
  changes = []
  for row in sequences:
    against = plain.get(row['category'])
    if against is not None and row is not against:
      found = perplexity_change_with_interval(row['nats'], against['nats'], row['tokens'])
      names = {name: row[name] for name in ('arm', 'neighbours', 'category')}
      changes.append({**names, 'against': baseline, **found})
  return changes


def headline(changes: Sequence[Row], questions: Sequence[Row], retro: str) -> list[dict[str, Any]]:
  """At most three figures: what retrieval gives, its control, and what the questions show.

  Each has `name`, `detail`, `value`, `low`, `high`, `unit` and `meaning`. What was not measured is
  left out.
  """
  of_retro = {
    row['neighbours']: row for row in changes if (row['arm'], row['category']) == (retro, 'all')
  }
  found = []
  for kind, detail, meanings in (
    ('own', 'own neighbours, same tokens', _RETRIEVAL),
    ('random', 'random neighbours (control)', _CONTROL),
  ):
    if row := of_retro.get(kind):
      name = f'perplexity of {retro} against {row["against"]}'
      found.append(_figure(name, detail, row, '%', meanings))
  return [*found, *_of_questions(questions)]


def _of_questions(rows: Sequence[Row]) -> list[dict[str, Any]]:
  """F1 over all questions of the last arm, with the most passages and the encoder off if it can be.

  Against the baseline of the questions, which a tuned arm came from; an arm without one is held
  against itself without passages.
  """
  rows = [row for row in rows if (row['metric'], row['task']) == ('f1', 'all')]
  arms = list(dict.fromkeys(row['arm'] for row in rows))
  for key in ('difference', 'from_passages'):
    held = [row for row in rows if key in row]
    if held:
      row = max(held, key=lambda r: (arms.index(r['arm']), r['passages'], r['encoder'] == 'off'))
      against = row[key].get('against', 'itself without passages')
      passages = f'{row["passages"]} passage{"" if row["passages"] == 1 else "s"}'
      detail = f'all questions, {passages}, encoder {row["encoder"]}'
      return [
        _figure(f'F1 of {row["arm"]} against {against}', detail, row[key], 'points', _ANSWERS)
      ]
  return []


def _figure(
  name: str, detail: str, row: Row, unit: str, meanings: tuple[str, str, str]
) -> dict[str, Any]:
  fall, rise, neither = meanings
  meaning = fall if row['high'] < 0 else rise if row['low'] > 0 else neither
  numbers = {key: row[key] for key in ('value', 'low', 'high')}
  return {'name': name, 'detail': detail, **numbers, 'unit': unit, 'meaning': meaning}

"""Rows of results as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

CATEGORIES = ('all', 'copyable', 'other', 'first_chunk')
GATE_WORDS = {'own': 'gate on', 'off': 'gate off', 'random': 'random neighbours'}


def find(rows: Sequence[Row], **wanted: Any) -> Row | None:
  """The first row with these values."""
  return next((r for r in rows if all(r.get(k) == v for k, v in wanted.items())), None)


def perplexity_table(rows: Sequence[Row]) -> list[list[str]]:
  """A header, then a line for each arm and gate: perplexity with its 95 % interval."""
  table = [['arm', 'neighbours', *(c.replace('_', ' ') for c in CATEGORIES), 'bits/byte']]
  for arm, gate in dict.fromkeys((r['arm'], r['neighbours']) for r in rows):
    cells = [find(rows, arm=arm, neighbours=gate, category=c) for c in CATEGORIES]
    shown = [f'{c["perplexity"]:.2f} ({c["low"]:.1f}-{c["high"]:.1f})' if c else '' for c in cells]
    table.append([arm, GATE_WORDS[gate], *shown, f'{cells[0]["bits_per_byte"]:.3f}'])
  return table


def run_table(rows: Sequence[Row], arms: Sequence[tuple[str, str]]) -> list[list[str]]:
  """Perplexity by the length of the run shared with the neighbours, for (arm, gate) pairs."""
  runs = list(dict.fromkeys(r['category'] for r in rows if r['category'].startswith('run_')))
  table = [['shared run', 'tokens', *(f'{arm}, {GATE_WORDS[gate]}' for arm, gate in arms)]]
  for run in runs:
    cells = [find(rows, arm=arm, neighbours=gate, category=run) for arm, gate in arms]
    shown = [f'{c["perplexity"]:.2f}' if c else '' for c in cells]
    tokens = next((str(c['tokens']) for c in cells if c), '')
    table.append([run.removeprefix('run_').replace('_', '-'), tokens, *shown])
  return table


def question_table(rows: Sequence[Row]) -> list[list[str]]:
  """A line for each system: exact match and F1 in percent with 95 % intervals."""
  tasks = list(dict.fromkeys(r['task'] for r in rows))
  table = [['arm', 'passages', 'encoder', 'metric', *tasks]]
  for key in dict.fromkeys((r['arm'], r['passages'], r['encoder'], r['metric']) for r in rows):
    arm, passages, encoder, metric = key
    same = dict(arm=arm, passages=passages, encoder=encoder, metric=metric)
    cells = [find(rows, task=task, **same) for task in tasks]
    shown = [f'{c["value"]:.1f} ({c["low"]:.0f}-{c["high"]:.0f}), n={c["count"]}' for c in cells]
    table.append([arm, 'yes' if passages else 'no', encoder, metric.replace('_', ' '), *shown])
  return table


def statistics_table(statistics: Mapping[str, Any]) -> list[list[str]]:
  """Nested counts of stages as lines of name and value."""
  table = [['stage', 'count', 'value']]

  def add(stage: str, path: str, value: Any) -> None:
    if isinstance(value, Mapping):
      for name, inner in value.items():
        add(stage, f'{path} {name}'.strip().replace('_', ' '), inner)
    elif isinstance(value, (int, float, str)):
      table.append([stage, path, f'{value:,}' if isinstance(value, int) else str(value)])

  for stage, counts in statistics.items():
    add(stage, '', counts)
  return table

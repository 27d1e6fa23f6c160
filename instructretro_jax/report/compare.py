"""Runs that differ in their seed, side by side: means, and the spread of seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any

import numpy as np

from instructretro_jax.pipeline import manifest
from instructretro_jax.report.categories import CATEGORIES, KINDS, RUNS
from instructretro_jax.report.tables import (
  Cell,
  Table,
  format_number,
  table_of,
)

Key = tuple[str, str, str]  # arm, neighbours, category


def compare(
  roots: Sequence[Path], stage: str = 'perplexity', baseline: str = 'gpt_fit'
) -> dict[str, Any]:
  """Perplexities of several runs, JSON-like: each value, mean, standard deviation over runs.

  `gains` holds, for each arm with neighbours, the per cent by which it lies below `baseline` of the
  same run. Raises StageError if a run is not evaluated, was evaluated in another way than the
  first, or lacks a row that the first has.
  """
  values: dict[Key, list[float]] = {}
  arguments = []
  for root in roots:
    arguments.append(manifest.read_manifest(root / stage).plan.arguments)
    if arguments[-1] != arguments[0]:
      raise manifest.StageError(
        f'{root} was evaluated with {json.dumps(arguments[-1])}, {roots[0]} with '
        f'{json.dumps(arguments[0])}: compare runs of one experiment'
      )
    for row in json.loads((root / stage / 'results.json').read_text()):
      values.setdefault((row['arm'], row['neighbours'], row['category']), []).append(
        row['perplexity']
      )
  if short := [key for key, found in values.items() if len(found) != len(roots)]:
    raise manifest.StageError(f'not every run of {[str(r) for r in roots]} has the rows {short}')
  names = ('arm', 'neighbours', 'category')
  rows = [{**dict(zip(names, key)), **_summary(found)} for key, found in values.items()]
  gains = []
  for (arm, kind, category), found in values.items():
    plain = values.get((baseline, 'off', category))
    if kind == 'own' and plain is not None:
      gain = 100 * (1 - np.array(found) / np.array(plain))
      gains.append({'arm': arm, 'category': category, **_summary(gain.tolist())})
  return {'runs': [root.name for root in roots], 'perplexity': rows, 'gains': gains}


def _summary(values: Sequence[float]) -> dict[str, Any]:
  spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
  return {
    'values': [round(float(v), 4) for v in values],
    'mean': round(float(np.mean(values)), 4),
    'sd': None if spread is None else round(spread, 4),
  }


def tables(found: Mapping[str, Any]) -> tuple[Table, ...]:
  """Perplexity by kind of token and by shared run, and the gains over the baseline."""
  count = len(found['runs'])
  made = []
  for labels, what in ((CATEGORIES, 'kind of token'), (RUNS, 'shared run, in tokens')):
    lines: dict[Cell, dict[str, Cell]] = {}
    for row in found['perplexity']:
      lines.setdefault(Cell(row['arm'], KINDS[row['neighbours']]), {})[row['category']] = _cell(row)
    title = f'Perplexity by {what}: mean of {count} runs, ± standard deviation'
    made.append(_table(title, labels, lines))
  gains: dict[Cell, dict[str, Cell]] = {}
  for row in found['gains']:
    gains.setdefault(Cell(row['arm'], 'own neighbours'), {})[row['category']] = _cell(row)
  title = 'Per cent below the arm without retrieval, run by run'
  return (*made, _table(title, CATEGORIES | RUNS, gains))


def _table(
  title: str, labels: Mapping[str, str], lines: Mapping[Cell, Mapping[str, Cell]]
) -> Table:
  shown = [name for name in labels if any(name in cells for cells in lines.values())]
  return table_of(title, {name: Cell(labels[name]) for name in shown}, lines)


def _cell(row: Mapping[str, Any]) -> Cell:
  spread = '' if row['sd'] is None else f'± {format_number(row["sd"])}'
  return Cell(format_number(row['mean']), spread)

"""Runs that differ in their seed, side by side: means, and the spread of seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from instructretro_jax.pipeline import foreign, manifest, settings
from instructretro_jax.pipeline.paths import is_remote
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
  same run. Raises StageError if a run is not evaluated, differs from the first in more than seeds
  (of the evaluation, or of a stage that it goes back to), or lacks a row that the first has.
  """
  values: dict[Key, list[float]] = {}
  names = _distinct_names(roots)
  first = _settings(roots[0], stage)
  for root in roots:
    if wrong := _differences(first, _settings(root, stage)):
      raise manifest.StageError(
        f'{root} was made in another way than {roots[0]}: {wrong}; compare runs of one experiment, '
        'which differ in their seeds alone'
      )
    for row in json.loads((root / stage / 'results.json').read_text()):
      values.setdefault((row['arm'], row['neighbours'], row['category']), []).append(
        row['perplexity']
      )
  if short := [key for key, found in values.items() if len(found) != len(roots)]:
    raise manifest.StageError(f'not every run of {[str(r) for r in roots]} has the rows {short}')
  parts = ('arm', 'neighbours', 'category')
  rows = [{**dict(zip(parts, key)), **_summary(found)} for key, found in values.items()]
  gains = []
  for (arm, kind, category), found in values.items():
    plain = values.get((baseline, 'off', category))
    if kind == 'own' and plain is not None:
      gain = 100 * (1 - np.array(found) / np.array(plain))
      gains.append({'arm': arm, 'category': category, **_summary(gain.tolist())})
  return {'runs': names, 'perplexity': rows, 'gains': gains}


def _distinct_names(roots: Sequence[Path]) -> list[str]:
  """The paths below the last folder that all runs are in. Raises StageError for one given twice."""
  whole = [PurePosixPath(str(root) if is_remote(root) else os.path.abspath(root)) for root in roots]
  if twice := [str(root) for n, root in enumerate(roots) if whole[n] in whole[:n]]:
    raise manifest.StageError(f'{twice[0]} is given twice: the spread of runs would be too small')
  common = os.path.commonpath([PurePosixPath('/', root.parent) for root in whole])
  return [PurePosixPath('/', root).relative_to(common).as_posix() for root in whole]


def _settings(root: Path, stage: str) -> dict[str, Any]:
  """The arguments of a stage, and of all that it goes back to, by 'stage.argument'; no seeds."""
  manifest.read_manifest(root / stage)
  found: dict[str, Any] = {}
  for name, plan in settings.history(root / stage).items():
    if manifest.is_finished(root / name):
      found |= settings.flat(plan.arguments, name)
  is_seed = lambda name: name.endswith(('.seed', '_seed'))
  return {name: value for name, value in found.items() if not is_seed(name)}


def _differences(first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
  """In words, of the stages that both runs still have, the first few."""
  stage_of = lambda name: name.partition('.')[0]
  both = {stage_of(name) for name in first} & {stage_of(name) for name in other}
  say = lambda found, name: json.dumps(found[name])[:60] if name in found else 'not set'
  wrong = [
    f'{name} is {say(other, name)}, not {say(first, name)}'
    for name in sorted(first.keys() | other.keys())
    if stage_of(name) in both and first.get(name) != other.get(name)
  ]
  return foreign.shorten(wrong, 3)


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

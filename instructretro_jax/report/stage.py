"""The report stage: gathers what a run measured into report.json and one page."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from instructretro_jax.pipeline import manifest
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.pipeline.stage import Stage
from instructretro_jax.report import hyperparameters, page
from instructretro_jax.report.categories import KINDS
from instructretro_jax.report.checks import checks
from instructretro_jax.report.figures import headline, perplexity_changes
from instructretro_jax.report.tables import print_tables

_MAX_POINTS = 250  # of a loss curve; longer ones are averaged


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Stage):
  """Gathers what was measured into one page, and prints the figures that matter.

  Writes report.json, which holds every number of the page, and index.html. The figures are printed
  last. A failed check is reported in words and counted, and stops nothing.

  Attributes:
    arms: training stages whose loss curves are drawn.
    statistics: stages whose counts are listed.
    baseline: the arm without retrieval, against which the checks hold `retro`.
  """

  name: str = 'report'
  arms: tuple[str, ...]
  perplexity: str | None = 'perplexity'  # None: it was not measured
  questions: str | None = 'questions_eval'  # None: no questions were asked
  statistics: tuple[str, ...] = ('corpus', 'chunks', 'index', 'neighbours')
  baseline: str = 'gpt_fit'
  retro: str = 'retro_fit'

  def reads(self) -> tuple[str, ...]:
    """The stages whose folders `build` reads."""
    results = [name for name in (self.perplexity, self.questions) if name]
    return (*self.arms, *results, *self.statistics)

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    """Writes the page, and prints the tables that matter."""
    rows = _read(root, self.perplexity, 'results.json')
    found = checks(rows, self.baseline, self.retro) if rows else []
    changes = perplexity_changes(_read(root, self.perplexity, 'sequences.json'), self.baseline)
    questions = _read(root, self.questions, 'results.json')
    report = {
      'headline': headline(changes, questions, self.retro),
      'checks': found,
      'perplexity': rows,
      'perplexity_changes': changes,
      'questions': questions,
      'statistics': {name: manifest.read_manifest(root / name).counts for name in self.statistics},
      'curves': {arm: read_curve(root / arm) for arm in self.arms},
      'heldout_curves': {arm: read_heldout(root / arm) for arm in self.arms},
      'hyperparameters': hyperparameters.read(root, self.arms),
    }
    passages = _read(root, self.perplexity, 'passages.json')
    manifest.write_text(folder / 'report.json', json.dumps(report, indent=1) + '\n')
    path = folder / 'index.html'
    manifest.write_text(path, page.render(report, passages, (self.baseline, self.retro)))
    console = Console()
    print_tables(report, console)
    console.print(f'Report: {path}', markup=False, highlight=False, soft_wrap=True)
    passed = sum(check['passed'] for check in report['checks'])
    return {'checks_passed': passed, 'checks': len(report['checks'])}


def read_curve(folder: Path) -> list[list[float]]:
  """[step, loss] of a training stage; a long curve as means over stretches of equal length.

  Raises StageError if the stage logged nothing.
  """
  points = [(row['step'], row['loss']) for row in _read_metrics(folder)]
  size = -(-len(points) // _MAX_POINTS)
  stretches = [points[i : i + size] for i in range(0, len(points), size)]
  return [[part[-1][0], round(sum(loss for _, loss in part) / len(part), 5)] for part in stretches]


def read_heldout(folder: Path) -> dict[str, list[list[float]]]:
  """[step, nats] by kind of neighbours, where a training stage measured them as it trained."""
  curves: dict[str, list[list[float]]] = {}
  for row in _read_metrics(folder):
    for kind in KINDS:
      if (name := f'heldout/{kind}') in row:
        curves.setdefault(kind, []).append([row['step'], round(row[name], 5)])
  return curves


def _read_metrics(folder: Path) -> list[dict[str, Any]]:
  path = folder / 'logs' / 'metrics.jsonl'
  lines = path.read_text().splitlines() if path.exists() else []
  if not lines:
    raise StageError(f'{path} holds no losses: rebuild with --rebuild={folder.name}')
  return [json.loads(line) for line in lines]


def _read(root: Path, stage: str | None, name: str) -> list[dict[str, Any]]:
  """Rows of a file in the folder of a stage; none without the stage."""
  if stage is None:
    return []
  path = root / stage / name
  if not path.exists():
    raise StageError(f'{path} is missing: rebuild with --rebuild={stage}')
  return json.loads(path.read_text())

"""The report stage: every number in report.json, the same numbers for people in index.html."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from instructretro_jax import manifest
from instructretro_jax.report import page, plots, tables
from instructretro_jax.stage import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Stage):
  """Reads run folders alone and writes the report.

  Attributes:
    arms: training stages whose loss is plotted.
    baseline: arm that had the same further tokens without retrieval.
    retro: arm that is compared with it.
  """

  name: str = 'report'
  arms: tuple[str, ...]
  perplexity: str = 'perplexity'
  questions: str = 'questions_eval'
  statistics: tuple[str, ...] = ('corpus', 'chunks', 'index', 'neighbours')
  baseline: str = 'gpt_fit'
  retro: str = 'retro_fit'

  def reads(self) -> tuple[str, ...]:
    return (*self.statistics, *self.arms, self.perplexity, self.questions)

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    perplexity = json.loads((root / self.perplexity / 'results.json').read_text())
    questions = json.loads((root / self.questions / 'results.json').read_text())
    passages = json.loads((root / self.perplexity / 'passages.json').read_text())
    counts = {name: manifest.read_manifest(root / name).counts for name in self.statistics}
    curves = {arm: _curve(root / arm) for arm in self.arms}
    checks = self._checks(perplexity)
    report = {
      'checks': checks,
      'perplexity': perplexity,
      'questions': questions,
      'curves': curves,
      'statistics': counts,
    }
    compared = [(self.baseline, 'off'), (self.retro, 'own'), (self.retro, 'off')]
    shown = {
      'perplexity': tables.perplexity_table(perplexity),
      'runs': tables.run_table(perplexity, compared),
      'questions': tables.question_table(questions),
      'statistics': tables.statistics_table(counts),
    }
    content = {**shown, 'checks': checks, 'loss_plot': plots.loss_curves(curves)}
    manifest.write_text(folder / 'report.json', json.dumps(report, indent=1))
    manifest.write_text(folder / 'index.html', page.render(content, passages))
    _say(shown, checks, folder / 'index.html')
    return {'checks': len(checks), 'checks_passed': sum(check['passed'] for check in checks)}

  def _checks(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def of(arm: str, neighbours: str) -> float:
      return tables.find(rows, arm=arm, neighbours=neighbours, category='all')['perplexity']

    baseline, on = of(self.baseline, 'off'), of(self.retro, 'own')
    off, at_random = of(self.retro, 'off'), of(self.retro, 'random')
    wanted = [
      (f'{self.retro} with its neighbours below {self.baseline}', 100 * (1 - on / baseline), 20),
      ('random neighbours above the gate off', 100 * (at_random / off - 1), 5),
    ]
    return [
      {'name': name, 'value': round(value, 2), 'threshold': least, 'passed': value >= least}
      for name, value, least in wanted
    ]


def _curve(stage_folder: Path) -> list[list[float]]:
  lines = (stage_folder / 'logs' / 'metrics.jsonl').read_text().splitlines()
  return [[row['step'], row['loss']] for row in map(json.loads, lines)]


def _say(shown: dict[str, list[list[str]]], checks: list[dict[str, Any]], path: Path) -> None:
  console = Console(width=None if Console().is_terminal else 120)
  for name in ('perplexity', 'runs', 'questions'):
    header, *rows = shown[name]
    table = Table(*header, title=name)
    for row in rows:
      table.add_row(*row)
    console.print(table)
  for check in checks:
    word = 'passed' if check['passed'] else 'FAILED'
    line = f'{word}: {check["name"]}: {check["value"]:.1f} % (at least {check["threshold"]} %)'
    console.print(line, highlight=False)
  console.print(f'report: {path}', soft_wrap=True, highlight=False)

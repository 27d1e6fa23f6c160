"""The report as one HTML page that needs nothing else."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from instructretro_jax.report import hyperparameters, plots, tables
from instructretro_jax.report.categories import CATEGORIES, RUNS

# Gains, in nats, at which the colour of a token deepens.
GAIN_STEPS = (0.1, 0.5, 1.0, 2.0, 4.0)


def render(
  report: Mapping[str, Any], passages: Sequence[Mapping[str, Any]], main_arms: Sequence[str]
) -> str:
  """The page. Text from corpora is escaped; only our own SVG goes in as it is.

  Every number is one of `report`, but for the gains of the viewer, which are those of `passages`.
  """
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  environment.filters |= {'shade': shade, 'split_marks': split_marks}
  perplexity, changes = report['perplexity'], report['perplexity_changes']
  return environment.get_template('page.html.j2').render(
    arms=tables.arm_table(report['curves']),
    settings=hyperparameters.tables(report['hyperparameters']),
    headline=tables.headline_table(report['headline']) if report['headline'] else None,
    checks=[(check['passed'], tables.check_line(check)) for check in report['checks']],
    perplexity=tables.perplexity_table(perplexity) if perplexity else None,
    runs=tables.run_table(perplexity) if perplexity else None,
    changes=[
      tables.change_table(changes, CATEGORIES, 'kind of token'),
      tables.change_table(changes, RUNS, 'shared run, in tokens'),
    ]
    if changes
    else [],
    run_plot=Markup(plots.perplexity_by_run(perplexity, main_arms)) if perplexity else None,
    questions=tables.question_tables(report['questions']),
    statistics=[tables.statistics_table(*item) for item in report['statistics'].items()],
    curves=[Markup(svg) for svg in plots.loss_curves(report['curves'], report['heldout_curves'])],
    passages=passages,
    gain_steps=GAIN_STEPS,
  )


def shade(gain: float | None) -> str:
  """Class of a token: g1 to g5 where retrieval helped, l1 to l5 where it hurt, else empty."""
  level = 0 if gain is None else bisect.bisect_right(GAIN_STEPS, abs(gain))
  if gain is None or level == 0:
    return ''
  return f'{"g" if gain > 0 else "l"}{level}'


def split_marks(text: str, spans: Sequence[Sequence[int]]) -> Iterator[tuple[bool, str]]:
  """The text in pieces, each with whether it is inside a span; spans are sorted and disjoint."""
  end = 0
  for start, stop in spans:
    yield False, text[end:start]
    yield True, text[start:stop]
    end = stop
  yield False, text[end:]

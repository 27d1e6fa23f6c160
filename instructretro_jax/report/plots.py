"""Plots of the report as SVG that takes the text colour of the page around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import html
import io
import re
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from instructretro_jax.report.categories import KINDS, RUNS

_INK = '#010203'  # stands for currentColor, which matplotlib does not know
_COLOURS = ('#3d7fd9', '#d9742b', '#2b9a73', '#b05fc4', '#a88a1f', '#cf4f6b', '#4aa3b5', '#8a8f98')
_STYLE = {
  'svg.fonttype': 'none',  # text stays text: small and selectable
  'font.size': 11,
  'font.family': 'sans-serif',
  'axes.spines.top': False,
  'axes.spines.right': False,
  'legend.frameon': False,
  'legend.fontsize': 10,
  **dict.fromkeys(
    ('text.color', 'axes.labelcolor', 'axes.edgecolor', 'xtick.color', 'ytick.color'), _INK
  ),
}
Curve = Sequence[Sequence[float]]

_DASHES = {'own': '--', 'off': '-.', 'random': ':'}
_NO_METADATA = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))


def loss_curves(
  curves: Mapping[str, Curve], heldout: Mapping[str, Mapping[str, Curve]] | None = None
) -> list[str]:
  """One SVG for each training length, so that arms of the same length share a plot.

  Args:
    curves: [step, loss] of each arm.
    heldout: the same by arm and kind of neighbours, drawn beside its training loss.
  """
  colours = {arm: _COLOURS[i % len(_COLOURS)] for i, arm in enumerate(curves)}
  by_length: dict[int, list[str]] = {}
  for arm, curve in curves.items():
    by_length.setdefault(int(curve[-1][0]), []).append(arm)
  plots = []
  for arms in by_length.values():
    with matplotlib.rc_context(_STYLE):
      figure, axes = _figure('step', 'loss, nats per token')
      for arm in arms:
        steps, losses = zip(*curves[arm])
        axes.plot(steps, losses, label=arm, color=colours[arm], linewidth=1.4)
        for kind, curve in (heldout or {}).get(arm, {}).items():
          axes.plot(
            *zip(*curve),
            label=f'{arm}, held out, {KINDS[kind]}',
            color=colours[arm],
            linestyle=_DASHES[kind],
            marker='.',
          )
      axes.legend()
      plots.append(_svg(figure, f'Training loss of {", ".join(arms)}'))
  return plots


def perplexity_by_run(rows: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> str:
  """SVG of perplexity, with 95 % intervals, against the run shared with the neighbours."""
  lines: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
  for row in rows:
    if row['arm'] in arms and row['category'] in RUNS:
      lines.setdefault((row['arm'], row['neighbours']), []).append(row)
  places = {category: i for i, category in enumerate(RUNS)}
  with matplotlib.rc_context(_STYLE):
    figure, axes = _figure('longest shared run, tokens', 'perplexity (log scale)')
    for i, ((arm, kind), found) in enumerate(lines.items()):
      x = [places[row['category']] + 0.07 * (i - (len(lines) - 1) / 2) for row in found]
      y = [row['perplexity'] for row in found]
      errors = [
        [row['perplexity'] - row['low'] for row in found],
        [row['high'] - row['perplexity'] for row in found],
      ]
      colour = _COLOURS[i % len(_COLOURS)]
      label = f'{arm}, {KINDS[kind]}'
      axes.errorbar(
        x, y, errors, label=label, color=colour, marker='o', markersize=4, linewidth=1.2, capsize=2
      )
    axes.set_yscale('log')
    # round numbers: powers of ten are too few for the range of one plot
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,g}'))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks(range(len(RUNS)), RUNS.values())
    figure.legend(*axes.get_legend_handles_labels(), loc='outside upper left', ncols=2)
    return _svg(figure, 'Perplexity by longest shared run')


def _figure(x_label: str, y_label: str) -> tuple[Figure, Axes]:
  figure = Figure(figsize=(5.6, 3.8), layout='constrained')
  axes = figure.add_subplot(xlabel=x_label, ylabel=y_label)
  axes.grid(axis='y', color=_INK, alpha=0.15, linewidth=0.6)
  return figure, axes


def _svg(figure: Figure, title: str) -> str:
  buffer = io.StringIO()
  # the title as salt: the same ids every time, and others in each plot of a page
  with matplotlib.rc_context({'svg.hashsalt': title}):
    figure.savefig(buffer, format='svg', transparent=True, metadata=_NO_METADATA)
  text = buffer.getvalue()
  text = text[text.index('<svg') :].replace(_INK, 'currentColor')
  text = re.sub(r'<metadata>.*?</metadata>\s*', '', text, flags=re.DOTALL)
  text = re.sub(r'<g id="[^"]*"', '<g', text)  # group names are unused and repeat between plots
  return text.replace('<svg', f'<svg role="img" aria-label="{html.escape(title)}"', 1)

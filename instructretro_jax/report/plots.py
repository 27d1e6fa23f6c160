"""Plots as SVG text, the same bytes for the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import io

import matplotlib
from matplotlib.figure import Figure

_STYLE = {'svg.hashsalt': 'instructretro', 'svg.fonttype': 'none', 'font.size': 9}
_SMOOTHED = 20  # steps of the moving average


def loss_curves(curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
  """Training loss of each arm by step, averaged over 20 steps."""
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(7, 3.2), layout='constrained')
    axes = figure.add_subplot()
    for arm, points in curves.items():
      steps, losses = [p[0] for p in points], [p[1] for p in points]
      means = [
        sum(losses[max(0, i - _SMOOTHED + 1) : i + 1]) / min(i + 1, _SMOOTHED)
        for i in range(len(losses))
      ]
      axes.plot(steps, means, label=arm, linewidth=1.2)
    axes.set_xlabel('step')
    axes.set_ylabel('training loss (nats a token)')
    axes.legend(frameon=False, ncols=2)
    axes.grid(alpha=0.3)
    buffer = io.StringIO()
    figure.savefig(buffer, format='svg', metadata={'Date': None})
  return buffer.getvalue()[buffer.getvalue().index('<svg') :]

"""Checks of the report: does retrieval help, and is it the content of the neighbours that helps?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructretro_jax.pipeline.manifest import StageError

_GAIN = 20.0  # per cent by which retrieval must lower the perplexity of the plain decoder
_HARM = 5.0  # per cent by which random neighbours must raise it


def checks(rows: Sequence[Mapping[str, Any]], baseline: str, retro: str) -> list[dict[str, Any]]:
  """Both checks, in per cent of the perplexity of all tokens.

  Raises StageError if an arm was not evaluated in a mode that a check compares.
  """
  found = {(r['arm'], r['neighbours']): r['perplexity'] for r in rows if r['category'] == 'all'}
  wanted = [(baseline, 'off'), (retro, 'own'), (retro, 'off'), (retro, 'random')]
  for arm, kind in wanted:
    if (arm, kind) not in found:
      raise StageError(
        f'no perplexity of {arm} with neighbours={kind}, which the checks of the report compare: '
        'list the arm in Perplexity.arms, or name another one in Report.baseline or Report.retro'
      )
  plain, own, off, random = (found[key] for key in wanted)
  return [
    _check(
      f'perplexity of {retro} with its neighbours below {baseline}', 100 * (1 - own / plain), _GAIN
    ),
    _check(
      f'perplexity of {retro} with random neighbours above itself without retrieval',
      100 * (random / off - 1),
      _HARM,
    ),
  ]


def _check(name: str, value: float, threshold: float) -> dict[str, Any]:
  return {
    'name': name,
    'value': round(value, 2),
    'threshold': threshold,
    'passed': value >= threshold,
  }

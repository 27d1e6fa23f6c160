"""From records of answered questions to rows of results: means, intervals, paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any, NamedTuple

from instructretro_jax.questions.styles import ROUGE
from instructretro_jax.report.bootstrap import (
  difference_with_interval,
  geometric_mean_with_interval,
  mean_with_interval,
)

CHOICE = 'choice'  # whether the likeliest option is right
CEILING = 'ceiling'  # whether an answer stands in the passages of the prompt
ROUGE_MEAN = 'rouge_mean'  # geometric mean of ROUGE-1, -2 and -L

Record = Mapping[str, Any]


class System(NamedTuple):
  """One way of answering: who answers, and what is read."""

  arm: str
  encoder: str  # 'on' or 'off'
  passages: int  # in the prompt, at most


def read_records(path: Path) -> list[Record]:
  """The records of one system, one a question."""
  with path.open(encoding='utf-8') as file:
    return [json.loads(line) for line in file]


def score_rows(records: Mapping[System, Sequence[Record]], baseline: str) -> list[dict[str, Any]]:
  """A row per system, task ('all' for all together) and metric, in percent with 95 % intervals.

  Rows of other arms also have `difference`: how much higher they are than the baseline with its
  encoder off and as many passages, question by question, with an interval. Rows with passages have
  `from_passages`: how much higher they are than the same arm without.
  """
  rows = []
  for system, answered in records.items():
    against = records.get(System(baseline, 'off', system.passages))
    unaided = records.get(System(system.arm, 'off', 0))
    for task in ('all', *sorted({record['task'] for record in answered})):
      of_task = _of_task(answered, task)
      for metric in _metrics(of_task):
        scores = _scores(of_task, metric)
        row = {**system._asdict(), 'task': task, 'metric': metric, **mean_with_interval(scores)}
        if against is not None and system != System(baseline, 'off', system.passages):
          paired = _scores(_of_task(against, task), metric)
          found = difference_with_interval(scores, paired)
          row['difference'] = {'against': baseline, **found}
        if unaided is not None and system.passages and metric != CEILING:
          paired = _scores(_of_task(unaided, task), metric)
          row['from_passages'] = difference_with_interval(scores, paired)
        rows.append(row)
      if all(_scores(of_task, metric) for metric in ROUGE):
        summary = geometric_mean_with_interval([_scores(of_task, m) for m in ROUGE])
        rows.append({**system._asdict(), 'task': task, 'metric': ROUGE_MEAN, **summary})
  return rows


def _of_task(records: Sequence[Record], task: str) -> list[Record]:
  return [record for record in records if task in ('all', record['task'])]


def _metrics(records: Sequence[Record]) -> list[str]:
  return list(dict.fromkeys(metric for record in records for metric in record['scores']))


def _scores(records: Sequence[Record], metric: str) -> list[float]:
  return [record['scores'][metric] for record in records if metric in record['scores']]

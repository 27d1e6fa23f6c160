"""A small finished run, with text that would break a page that does not escape it."""

import json
import math
from pathlib import Path
import re

from instructretro_jax.pipeline import manifest
from instructretro_jax.report.stage import Report
from instructretro_jax.report.tables import CATEGORIES, RUNS

SCRIPT = '<script>alert(1)</script>'
ARMS = ('pretrain', 'gpt_fit', 'retro_fit', 'gpt_instruct', 'retro_instruct')
REPORT = Report(arms=ARMS)
_PERPLEXITY = {
  ('gpt_fit', 'off'): 31.4159,
  ('retro_fit', 'own'): 19.2718,
  ('retro_fit', 'off'): 33.5772,
  ('retro_fit', 'random'): 41.1213,
}


def perplexity_rows(retro_own: float = _PERPLEXITY['retro_fit', 'own']) -> list[dict]:
  """Rows of four systems; every category has other numbers."""
  rows = []
  for (arm, kind), value in {**_PERPLEXITY, ('retro_fit', 'own'): retro_own}.items():
    for i, category in enumerate((*CATEGORIES, *RUNS)):
      perplexity = round(value * (1 + 0.13 * i), 4)
      rows.append(
        {
          'arm': arm,
          'neighbours': kind,
          'category': category,
          'tokens': 4096 - 100 * i,
          'nats': round(math.log(perplexity), 5),
          'perplexity': perplexity,
          'low': round(perplexity * 0.97, 4),
          'high': round(perplexity * 1.04, 4),
          'bits_per_byte': round(math.log2(perplexity) / 4, 5) if category == 'all' else None,
        }
      )
  return rows


def sequence_rows(rows: list[dict], num_sequences: int = 12) -> list[dict]:
  """The sums by sequence behind rows of perplexity; what is hard is hard for every system."""
  found = []
  for row in rows:
    difficulties = [1 + math.sin(n) for n in range(num_sequences)]
    mean = sum(difficulties) / num_sequences
    nats = [100 * (row['nats'] + x - mean) for x in difficulties]
    names = {name: row[name] for name in ('arm', 'neighbours', 'category')}
    found.append({**names, 'nats': nats, 'tokens': [100] * num_sequences})
  return found


def question_rows(tasks: tuple[str, ...] = ('short_answers', 'spans')) -> list[dict]:
  """Two arms, three ways of reading, some tasks and all; one arm held against the other."""
  systems = [
    ('gpt_instruct', 'off', 0),
    ('gpt_instruct', 'off', 5),
    ('retro_instruct', 'off', 5),
    ('retro_instruct', 'on', 5),
  ]
  rows = []
  for i, (arm, encoder, passages) in enumerate(systems):
    system = {'arm': arm, 'encoder': encoder, 'passages': passages}
    for j, (task, count) in enumerate(zip(('all', *tasks), (150, 100, *[50] * len(tasks)))):
      for metric, bonus in [('exact_match', 0), ('f1', 6.25)]:
        value = 10.5 + 3 * i + j + bonus
        scores = {'value': value, 'low': value - 2.5, 'high': value + 2.75, 'count': count}
        rows.append({**system, 'task': task, 'metric': metric, **scores})
  for row in rows:
    if row['arm'] == 'retro_instruct' and row['encoder'] == 'off':
      found = {'value': 3.0, 'low': -0.5, 'high': 6.25, 'count': row['count']}
      row['difference'] = {'against': 'gpt_instruct', **found}
  return rows


def write_run(
  root: Path,
  retro_own: float = _PERPLEXITY['retro_fit', 'own'],
  tasks: tuple[str, ...] = ('short_answers', 'spans'),
) -> None:
  """Fills the folders that REPORT reads."""
  for number, arm in enumerate(ARMS):
    steps = 600 if arm == 'pretrain' else 60
    lines = [
      {
        'step': step,
        'loss': 3 + 6 * math.exp(-step / steps * 4) + 0.1 * math.sin(step + number),
        'tokens_per_s': 1000.0 + step,
        'learning_rate': 1e-3,
      }
      for step in range(1, steps + 1)
    ]
    for line in lines[19::20] if arm == 'retro_fit' else []:
      line |= {f'heldout/{kind}': line['loss'] + 0.2 for kind in ('own', 'off', 'random')}
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    manifest.write_text(root / arm / 'logs' / 'metrics.jsonl', text)
  rows = perplexity_rows(retro_own)
  _write_json(root / 'perplexity' / 'results.json', rows)
  _write_json(root / 'perplexity' / 'sequences.json', sequence_rows(rows))
  _write_json(root / 'perplexity' / 'passages.json', _passages())
  _write_json(root / 'questions_eval' / 'results.json', question_rows(tasks))
  counts = {
    'corpus': {'train': {'documents': 4321}, 'sources': {SCRIPT: {'documents': 3}}},
    'chunks': {'train': {'chunks': 98765}},
    'index': {'kind': 'exact', 'recall@10': 0.9875},
    'neighbours': {'heldout': {'run_shared_by_neighbours_with_the_next_chunk': {'mean': 7.25}}},
  }
  for name in REPORT.reads():
    own = {'num_steps': 600 if name == 'pretrain' else 60, 'init_from': SCRIPT}
    asked = {'name': name, 'seed': 7, **own, 'optimizer': {'class': 'AdamW', 'betas': [0.9, 0.95]}}
    plan = manifest.Plan('Synthetic', asked if name in ARMS else {}, {})
    manifest.commit(root / name, plan, counts.get(name, {}), frozenset({'logs'}))


def _passages() -> list[dict]:
  sentence = 'The tower, built in 1887, lies above the harbour and is painted red.\n'
  tokens = re.findall(r'\s?\w+|[^\w]', sentence) * 4
  gains = [round(5 * math.sin(i) ** 3, 3) for i in range(len(tokens))]
  text = f'The tower, built in 1887{SCRIPT} {"x" * 200}, lies above the valley.'
  neighbour = {'source': f'docs/{"long" * 30}{SCRIPT}', 'text': text, 'shared': [[4, 24]]}
  chunk = {'tokens': tokens, 'gain': gains, 'neighbours': [neighbour, neighbour]}
  first = {**chunk, 'tokens': [SCRIPT, *tokens], 'gain': [None, *gains]}
  alone = {**chunk, 'neighbours': []}
  return [
    {'id': f'passage-{n}{SCRIPT}', 'source': 'handbook', 'chunks': [first, alone, chunk]}
    for n in range(3)
  ]


def _write_json(path: Path, content: list[dict]) -> None:
  manifest.write_text(path, json.dumps(content))

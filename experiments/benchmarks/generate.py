"""Text from SmolLM2-135M: our sampler against `transformers`, and what a token costs further on.

python experiments/benchmarks/generate.py --out=generate.json

Both have the same weights in float32 and the same prompts, decode greedily with a cache, and answer
in processes of their own, in turns. The peer gets its own environment on first use, if none is
given. Processor seconds are over all threads; threads that wait for others count where they spin.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
import platform
import sys
import time
import zlib

import click
import numpy as np
from workers import CACHE, Worker, peer_python, serve, spread

# the CPU build of torch where pip finds one
PEER = ('torch==2.13.0', 'transformers==5.24.0')
HERE = Path(__file__).parent
WINDOW = 128  # tokens that one figure of the cost by position is the mean of


def take_weights(checkpoint: Path | None) -> tuple[Path, Path]:
  """The checkpoint, imported on first use if none is given, and its export for the peer."""
  from instructretro_jax.interop import stages

  if checkpoint is None:
    checkpoint = CACHE / 'smollm2_135m'
    if not (checkpoint / 'manifest.json').exists():
      stages.import_alone('smollm2', checkpoint, None, None)
  exported = CACHE / f'exported_{zlib.crc32(str(checkpoint.absolute()).encode()):08x}'
  if not exported.exists():
    stages.export(checkpoint, exported, 'huggingface', None)
  return checkpoint, exported


def open_endless(checkpoint: Path):
  """The sampler, with a vocabulary without an end token."""
  from instructretro_jax.inference.loading import load_sampler

  sampler = load_sampler(checkpoint, with_encoder=False)

  class Endless(type(sampler.vocab)):
    eos_id, end_ids = -1, (-1,)

  sampler.vocab.__class__ = Endless
  return type(sampler)(sampler.model, sampler.params, sampler.vocab)


def serve_ours(asked: dict) -> None:
  """A worker: the call that `instructretro generate --prompts` makes."""
  import jax

  from instructretro_jax.inference.answer import Request

  sampler = open_endless(Path(asked['folder']))
  requests = [Request(prompt=tuple(p), max_new=asked['num_new']) for p in asked['prompts']]

  def run() -> float:
    answers = sampler.generate(requests)
    return checksum([answer.tokens for answer in answers])

  serve(run, {'jax': jax.__version__})


def checksum(tokens: list) -> float:
  """The same if and only if all tokens are; what stands for a loss."""
  return float(zlib.crc32(np.array(tokens, np.int32).tobytes()))


def compare(
  folders: dict[str, Path], python: str, batch_size: int, lengths: tuple[int, int], options: dict
) -> dict:
  """What both take for a batch, in turns."""
  prompt_len, num_new = lengths
  prompts = np.random.default_rng(0).integers(100, 40_000, (batch_size, prompt_len)).tolist()
  workers = {}
  for name, folder in folders.items():
    asked = {'folder': str(folder), 'prompts': prompts, 'num_new': num_new}
    text = json.dumps(asked | {'threads': options['threads']})
    command = [sys.executable, __file__, f'--worker={text}']
    if name == 'transformers':
      command = [python, str(HERE / 'peers' / 'transformers_generate.py'), text]
    click.echo(f'starting {name}, batch {batch_size}', err=True)
    workers[name] = Worker(command, options['threads'])
  for _ in range(options['repeats']):
    for worker in workers.values():
      worker.step()
  for worker in workers.values():
    worker.close()
  made = batch_size * num_new
  row = {'batch_size': batch_size}
  for name, worker in workers.items():
    wall = [run['wall'] for run in worker.runs]
    row[name] = {
      **{k: v for k, v in worker.about.items() if k != 'first_loss'},
      'tokens_per_sec': spread([made / secs for secs in wall]),
      'cpu_ms_per_token': spread([1000 * run['cpu'] / made for run in worker.runs]),
    }
  ours, peer = (workers[name].runs for name in ('ours', 'transformers'))
  row['speed_over_peer'] = spread([b['wall'] / a['wall'] for a, b in zip(ours, peer)])
  row['same_tokens'] = ours[0]['loss'] == peer[0]['loss']
  return row


def cost_by_position(checkpoint: Path, num_windows: int, repeats: int) -> list[dict]:
  """Milliseconds of a token, batch 1, by how many stand before it; one size of cache."""
  from instructretro_jax.inference.decode import left_pad

  sampler = open_endless(checkpoint)
  decoder, num_new = sampler._decoder, num_windows * WINDOW + 1
  prompt = np.random.default_rng(0).integers(100, 40_000, 64).tolist()
  windows: list[list[float]] = [[] for _ in range(num_windows)]
  for repeat in range(repeats + 1):
    rows = decoder.begin(sampler.params, *left_pad([prompt], 64), gate=0, max_new=num_new)
    np.asarray(rows.token_B)
    for window in windows:
      start = time.perf_counter()
      for _ in range(WINDOW // decoder.tokens_per_call):
        rows, tokens = decoder.advance(sampler.params, rows, gate=0, count=decoder.tokens_per_call)
        np.asarray(tokens)
      if repeat:  # the first compiles
        window.append(1000 * (time.perf_counter() - start) / WINDOW)
  return [
    {'behind': 64 + n * WINDOW, 'ms_per_token': spread(window)} for n, window in enumerate(windows)
  ]


def show(summary: dict[str, float], digits: int = 1) -> str:
  median, low, high = (f'{summary[name]:.{digits}f}' for name in ('median', 'low', 'high'))
  return f'{median} ({low}-{high})'


@click.command()
@click.option('--checkpoint', type=click.Path(exists=True, path_type=Path), help='Imported folder.')
@click.option('--peer', help="The peer's Python, with torch and transformers.")
@click.option('--batch_sizes', default='1,8', show_default=True, help='With commas.')
@click.option('--prompt_len', default=64, show_default=True)
@click.option('--num_new', default=64, show_default=True)
@click.option('--windows', default=4, show_default=True, help=f'Of {WINDOW} tokens; 0: none.')
@click.option('--repeats', default=5, show_default=True)
@click.option('--threads', default=2, show_default=True)
@click.option('--out', type=click.Path(path_type=Path), help='Where the JSON result goes.')
@click.option('--worker', hidden=True)
def main(
  checkpoint, peer, batch_sizes, prompt_len, num_new, windows, repeats, threads, out, worker
) -> None:
  """Times generation in turns; see the top of this file."""
  if worker:
    serve_ours(json.loads(worker))
    return
  load = os.getloadavg()[0]
  checkpoint, exported = take_weights(checkpoint)
  python = peer or peer_python('transformers', PEER)
  folders = {'ours': checkpoint, 'transformers': exported}
  options = {'threads': threads, 'repeats': repeats}
  rows = [
    compare(folders, python, int(size), (prompt_len, num_new), options)
    for size in batch_sizes.split(',')
  ]
  result = {
    'prompt_len': prompt_len,
    'num_new': num_new,
    'batches': rows,
    'positions': cost_by_position(checkpoint, windows, max(1, repeats // 2)) if windows else [],
    'machine': platform.machine(),
    'cores': os.cpu_count(),
    'load_before': load,
    **options,
  }
  if out:
    out.write_text(json.dumps(result, indent=1) + '\n')
  names = ' | '.join(
    f'{name}, {unit}' for unit in ('tokens/s', 'processor ms a token') for name in folders
  )
  click.echo(f'| batch | {names} | times as fast | same tokens |\n| --- |{" --- |" * 6}')
  for row in rows:
    cells = [
      show(row[name][unit]) for unit in ('tokens_per_sec', 'cpu_ms_per_token') for name in folders
    ]
    cells += [show(row['speed_over_peer'], 2), 'yes' if row['same_tokens'] else 'no']
    click.echo(f'| {row["batch_size"]} | {" | ".join(cells)} |')
  costs = [f'{r["behind"]}: {show(r["ms_per_token"])}' for r in result['positions']]
  click.echo('\nms per token behind so many: ' + ', '.join(costs))


if __name__ == '__main__':
  main()

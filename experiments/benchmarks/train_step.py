"""Our training step against other implementations, with retrieval against without, and its peak.

python experiments/benchmarks/train_step.py --out=train_step.json

All run the same shape: forward, backward and AdamW in float32, in processes of their own, one step
of each in turn. Peers get their own environments on first use. Processor seconds are over all
threads and move less under load than wall seconds.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
import platform
import sys

import click
from workers import Worker, peer_python, serve

PEERS = {
  # the CPU build of torch where pip finds one; pyarrow 22 wants numpy 2, which autofaiss forbids
  'retro_pytorch': ('torch==2.13.0', 'retro-pytorch==0.3.9', 'pyarrow<22'),
  'megatron_core': ('torch==2.13.0', 'megatron-core==0.15.3', 'numpy<2'),
}
HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Shape:
  """What every implementation computes."""

  vocab_size: int = 8192
  width: int = 256
  layers: int = 12
  heads: int = 4
  retro_layers: tuple[int, ...] = (5, 8, 11)
  encoder_layers: int = 2
  chunk_len: int = 64
  neighbours: int = 2
  seq_len: int = 512
  batch_size: int = 2
  threads: int = 2


def our_config(shape: Shape):
  from instructretro_jax.model.config import DecoderConfig, RetroConfig

  decoder = DecoderConfig(
    vocab_size=shape.vocab_size,
    num_layers=shape.layers,
    width=shape.width,
    num_heads=shape.heads,
    ff_width=4 * shape.width,
    activation='gelu',
    tie_embeddings=False,
  )
  return RetroConfig(
    decoder=decoder,
    chunk_len=shape.chunk_len,
    encoder_layers=shape.encoder_layers,
    cross_attention_layers=shape.retro_layers,  # switches as in the released models, like megatron
  )


def serve_ours(shape: Shape, gate: float) -> None:
  """A worker: the step that `instructretro run` trains with."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from instructretro_jax.model.flops import train_step_flops
  from instructretro_jax.model.retro import Retro
  from instructretro_jax.model.sharding import MeshConfig, make_mesh
  from instructretro_jax.train.optimizer import AdamW
  from instructretro_jax.train.state import (
    abstract_params,
    abstract_state,
    first_state,
    fresh_params,
  )
  from instructretro_jax.train.step import make_train_step

  config, mesh = our_config(shape), make_mesh(MeshConfig())
  rng, N, R = np.random.default_rng(0), shape.seq_len // shape.chunk_len, 2 * shape.chunk_len
  draw = lambda *s: jnp.asarray(rng.integers(1, shape.vocab_size, (shape.batch_size, *s)))
  tokens = draw(shape.seq_len + 1)
  batch = {
    'tokens': tokens[:, :-1],
    'targets': tokens[:, 1:],
    'segments': jnp.ones_like(tokens[:, 1:]),
    'loss_mask': jnp.ones(tokens[:, 1:].shape, jnp.float32),
  }
  if gate:
    neighbours = draw(N, shape.neighbours, R)
    batch |= {'neighbours': neighbours, 'neighbour_mask': jnp.ones(neighbours.shape, bool)}
  params = abstract_params(config, gate != 0, mesh)
  abstract, optimizer = abstract_state(params, AdamW(learning_rate=3e-4), 1000)
  state = [first_state(fresh_params(config, 0, params), optimizer, abstract)]
  step = jax.jit(make_train_step(Retro(config), optimizer, gate), donate_argnums=0)
  compiled = step.lower(state[0], batch).compile()

  def run() -> float:
    state[0], metrics = compiled(state[0], batch)
    jax.block_until_ready(state[0])
    return float(metrics['loss'])

  flops = train_step_flops(
    config,
    batch_size=shape.batch_size,
    seq_len=shape.seq_len,
    num_neighbours=shape.neighbours,
    is_open=gate != 0,
  ).total
  memory = compiled.memory_analysis()
  about = {
    'parameters': sum(x.size for x in jax.tree.leaves(state[0].params)),
    'jax': jax.__version__,
    'model_flops': flops,
    'temporary_bytes': memory.temp_size_in_bytes,
    'state_bytes': memory.argument_size_in_bytes,
  }
  serve(run, about)


def serve_peak(size: int = 2048) -> None:
  """A worker: a square matrix product, the most that this machine computes a second."""
  import jax
  import jax.numpy as jnp

  a = jnp.ones((size, size))
  product = jax.jit(jnp.matmul).lower(a, a).compile()
  run = lambda: float(jax.block_until_ready(product(a, a))[0, 0])
  serve(run, {'model_flops': 2 * size**3})


def start(name: str, shape: Shape) -> Worker:
  """The worker of that name, ready."""
  asked = json.dumps(dataclasses.asdict(shape))
  if name in PEERS:
    command = [peer_python(name, PEERS[name]), str(HERE / 'peers' / f'{name}_step.py'), asked]
  else:
    command = [sys.executable, __file__, f'--worker={name}', f'--shape={asked}']
  return Worker(command, shape.threads)


def measure(shapes: dict[str, tuple[str, Shape]], repeats: int) -> dict[str, dict]:
  """What each named worker took, all in turns."""
  workers = {}
  for label, (name, shape) in shapes.items():
    click.echo(f'starting {label}', err=True)
    workers[label] = start(name, shape)
  for _ in range(repeats):
    for worker in workers.values():
      worker.step()
  for worker in workers.values():
    worker.close()
  return {
    label: w.about | {kind: w.seconds(kind) for kind in ('wall', 'cpu')}
    for label, w in workers.items()
  }


def ratio(workers: dict[str, dict], kind: str, a: str, b: str) -> float:
  return workers[a][kind]['median'] / workers[b][kind]['median']


def compare(shape: Shape, peers: list[str], repeats: int) -> dict:
  """Sections (a) to (c): peers, the price of retrieval, and the share of the machine's peak."""
  names = ['ours', 'ours_without_retrieval', 'peak', *peers]
  found = measure({name: (name, shape) for name in names}, repeats)
  flops = {name: found[name]['model_flops'] for name in names[:3]}
  per_sec = {name: flops[name] / found[name]['wall']['median'] for name in flops}
  return {
    'shape': dataclasses.asdict(shape),
    'steps': found,
    'cpu_ours_over': {name: ratio(found, 'cpu', 'ours', name) for name in peers},
    'wall_ours_over': {name: ratio(found, 'wall', 'ours', name) for name in peers},
    'retrieval_over_none': {
      'flops': flops['ours'] / flops['ours_without_retrieval'],
      'wall': ratio(found, 'wall', 'ours', 'ours_without_retrieval'),
      'cpu': ratio(found, 'cpu', 'ours', 'ours_without_retrieval'),
    },
    'share_of_peak': per_sec['ours'] / per_sec['peak'],
  }


def cost_curve(shape: Shape, repeats: int) -> list[dict]:
  """Section (d): what a step takes as one size doubles."""
  doubled = {
    'base': shape,
    'seq_len': dataclasses.replace(shape, seq_len=2 * shape.seq_len),
    'batch_size': dataclasses.replace(shape, batch_size=2 * shape.batch_size),
    'layers': dataclasses.replace(
      shape,
      layers=2 * shape.layers,
      retro_layers=tuple(range(shape.retro_layers[0], 2 * shape.layers, 3)),
    ),
    'width': dataclasses.replace(shape, width=2 * shape.width, heads=2 * shape.heads),
  }
  found = measure({name: ('ours', s) for name, s in doubled.items()}, repeats)
  base = found['base']
  return [
    {
      'doubled': name,
      'flops_ratio': f['model_flops'] / base['model_flops'],
      'wall_ratio': f['wall']['median'] / base['wall']['median'],
      'temporary_bytes': f['temporary_bytes'],
      'state_bytes': f['state_bytes'],
      'wall': f['wall'],
    }
    for name, f in found.items()
  ]


def show(summary: dict[str, float]) -> str:
  return f'{summary["median"]:.2f} ({summary["low"]:.2f}-{summary["high"]:.2f})'


def report(result: dict) -> None:
  """Prints the tables of the record."""
  click.echo('| step | parameters | wall s | processor s |\n| --- | --- | --- | --- |')
  for name, f in result['steps'].items():
    parameters = f'{f["parameters"]:,}' if 'parameters' in f else ''
    click.echo(f'| {name} | {parameters} | {show(f["wall"])} | {show(f["cpu"])} |')
  for name, value in result['cpu_ours_over'].items():
    click.echo(f'processor seconds, ours / {name}: {value:.2f}')
  r = result['retrieval_over_none']
  click.echo(f'retrieval / none: wall {r["wall"]:.2f}, FLOPs {r["flops"]:.2f}')
  click.echo(f'share of the measured peak: {result["share_of_peak"]:.2f}')
  if curve := result.get('cost_curve'):
    click.echo('| doubled | FLOPs | wall | temporary MiB |\n| --- | --- | --- | --- |')
    for row in curve:
      click.echo(
        f'| {row["doubled"]} | {row["flops_ratio"]:.2f} | {row["wall_ratio"]:.2f} '
        f'| {row["temporary_bytes"] / 2**20:.0f} |'
      )


@click.command()
@click.option('--peers', default=','.join(PEERS), show_default=True, help='With commas, or "".')
@click.option('--curve', is_flag=True, help='Also double each size in turn.')
@click.option('--repeats', default=5, show_default=True)
@click.option('--threads', default=2, show_default=True)
@click.option('--out', type=click.Path(path_type=Path), help='Where the JSON result goes.')
@click.option('--worker', hidden=True)
@click.option('--shape', hidden=True)
def main(peers, curve, repeats, threads, out, worker, shape) -> None:
  """Times training steps in turns; see the top of this file."""
  if worker:
    fields = json.loads(shape)
    asked = Shape(**fields | {'retro_layers': tuple(fields['retro_layers'])})
    if worker == 'peak':
      serve_peak()
    else:
      serve_ours(asked, gate=0.0 if worker == 'ours_without_retrieval' else 1.0)
    return
  load = os.getloadavg()[0]
  asked = Shape(threads=threads)
  result = compare(asked, [name for name in peers.split(',') if name], repeats)
  if curve:
    result['cost_curve'] = cost_curve(asked, repeats)
  result |= {'machine': platform.machine(), 'cores': os.cpu_count(), 'load_before': load}
  if out:
    out.write_text(json.dumps(result, indent=1) + '\n')
  report(result)


if __name__ == '__main__':
  main()

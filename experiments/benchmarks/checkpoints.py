"""What a training step takes while checkpoints are written beside it.

python experiments/benchmarks/checkpoints.py --out=checkpoints.json

Blocks of steps in turns: without a checkpoint, with one every so many steps that is written while
training goes on (as `instructretro run` does), and with one that is waited for. The arm is that of
train_step.py without retrieval: small, so that the state is large beside the work of a step.
"""

from __future__ import annotations

import json
from pathlib import Path
import platform
import statistics
import tempfile
import time

import click
import jax
import numpy as np
from train_step import Shape, our_config

from instructretro_jax.model.execution import Execution
from instructretro_jax.model.sharding import MeshConfig, make_mesh
from instructretro_jax.train.checkpoint import Checkpoints, model_record
from instructretro_jax.train.compiled_step import compile_step
from instructretro_jax.train.optimizer import AdamW
from instructretro_jax.train.state import first_state, fresh_params

WAYS = ('none', 'beside', 'awaited')


def measure(shape: Shape, every: int, block: int, repeats: int) -> dict:
  """Wall and processor seconds a step by way, medians of the blocks."""
  config, mesh = our_config(shape), make_mesh(MeshConfig())
  rng = np.random.default_rng(0)
  tokens = rng.integers(1, shape.vocab_size, (shape.batch_size, shape.seq_len + 1), np.int32)
  ones = np.ones_like(tokens[:, 1:])
  batch = {
    'tokens': tokens[:, :-1],
    'targets': tokens[:, 1:],
    'segments': ones,
    'loss_mask': ones.astype(np.float32),
  }
  step = compile_step(
    config,
    Execution(),
    AdamW(learning_rate=3e-4),
    mesh,
    num_steps=10_000,
    with_retrieval=False,
    gate=0.0,
    num_microbatches=1,
  )
  state = first_state(fresh_params(config, 0, step.state.params), step.optimizer, step.state)
  record = model_record(config, Execution())
  found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
  with tempfile.TemporaryDirectory() as folder:
    checkpoints = Checkpoints(Path(folder) / 'checkpoints')
    for repeat in range(repeats + 1):  # the first block of each warms up
      for way in WAYS:
        wall, processor = time.monotonic(), time.process_time()
        for n in range(1, block + 1):
          state, _ = step.function(state, batch)
          jax.block_until_ready(state)
          if way != 'none' and n % every == 0:
            checkpoints.save(state, record)
            if way == 'awaited':
              checkpoints.wait()
        seconds = time.monotonic() - wall, time.process_time() - processor
        checkpoints.wait()  # what is left of the last is nobody's step
        if repeat:
          found[way].append((seconds[0] / block, seconds[1] / block))
    checkpoints.close()
  size = sum(x.nbytes for x in jax.tree.leaves((state.trainable, state.opt_state)))
  median = lambda way, kind: statistics.median(pair[kind] for pair in found[way])
  return {
    'state_bytes': size,
    'steps': {way: {'wall': median(way, 0), 'processor': median(way, 1)} for way in WAYS},
    'ratio_of_wall': {way: median(way, 0) / median('none', 0) for way in WAYS},
  }


@click.command(help=__doc__)
@click.option('--every', default=10, show_default=True, help='Steps between checkpoints.')
@click.option('--block', default=30, show_default=True, help='Steps of a block.')
@click.option('--repeats', default=3, show_default=True, help='Blocks of each way.')
@click.option('--out', type=click.Path(path_type=Path), help='JSON file for the figures.')
def main(every: int, block: int, repeats: int, out: Path | None) -> None:
  """Prints the figures, and writes them."""
  found = measure(Shape(), every, block, repeats)
  found |= {'every': every, 'jax': jax.__version__, 'machine': platform.machine()}
  print(f'state of {found["state_bytes"] / 2**20:.0f} MiB, a checkpoint every {every} steps')
  for way, seconds in found['steps'].items():
    print(
      f'{way:8} {seconds["wall"]:.3f} s a step ({found["ratio_of_wall"][way]:.2f}), '
      f'{seconds["processor"]:.3f} processor s'
    )
  if out:
    out.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
  main()

"""How far gradients in float32 and in bfloat16 are from those in float64, by group of parameters.

python experiments/benchmarks/numerics.py --out=numerics.json

A small Retro with neighbours, random tokens and parameters (0.02 wide, as before the first step).
Parameters are the same in all three; only the type of the activations differs.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
import functools
import json
from pathlib import Path
import platform

import click
from flax import traverse_util
import jax
import numpy as np

from instructretro_jax.array_types import Array, Batch, Params
from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.model.execution import Execution
from instructretro_jax.model.param_groups import part_of
from instructretro_jax.model.retro import Retro
from instructretro_jax.model.sharding import ONE_DEVICE, local_mesh
from instructretro_jax.train.state import abstract_params
from instructretro_jax.train.step import loss_of_batch

DTYPES = ('float32', 'bfloat16')
_NUM_NEIGHBOURS = 2


def make_config(width: int, num_layers: int) -> RetroConfig:
  """A model that has every kind of parameter."""
  decoder = DecoderConfig(
    vocab_size=8 * width,
    num_layers=num_layers,
    width=width,
    num_heads=4,
    num_kv_heads=2,
    ff_width=4 * width,
    positions='learned',
    use_bias=True,
    tie_embeddings=False,
  )
  return RetroConfig(
    decoder=decoder,
    chunk_len=32,
    encoder_layers=num_layers // 2 or 1,
    cross_attention_layers=tuple(range(num_layers // 2, num_layers)),
    mask_neighbours=True,
    encoder_relative_bias=True,
  )


def make_params(config: RetroConfig, seed: int) -> dict[str, np.ndarray]:
  """Parameters by path, biases and scales too: at rest they would hide errors."""
  rng = np.random.default_rng(seed)
  shapes = abstract_params(config, True, local_mesh(ONE_DEVICE))
  return {
    path: rng.normal(path.endswith('scale'), config.decoder.init_std, x.shape).astype(np.float32)
    for path, x in traverse_util.flatten_dict(shapes, sep='/').items()
  }


def make_batch(config: RetroConfig, seq_len: int, batch_size: int, seed: int) -> Batch:
  """Random tokens; the second neighbour of every chunk is half as long as the first."""
  rng, C = np.random.default_rng(seed), config.chunk_len
  draw = lambda *shape: rng.integers(1, config.decoder.vocab_size, (batch_size, *shape), np.int32)
  tokens, neighbours = draw(seq_len + 1), draw(seq_len // C, _NUM_NEIGHBOURS, 2 * C)
  mask = np.ones(neighbours.shape, bool)
  mask[:, :, 1, C:] = False
  return {
    'tokens': tokens[:, :-1],
    'targets': tokens[:, 1:],
    'segments': np.ones((batch_size, seq_len), np.int32),
    'loss_mask': np.ones((batch_size, seq_len), np.float32),
    'neighbours': neighbours,
    'neighbour_mask': mask,
  }


def group_of(path: str) -> str:
  """The part of the model, or 'biases': their gradients are plain sums over all tokens."""
  return 'biases' if path.endswith('/bias') else part_of(path)


@functools.cache
def gradient_of(config: RetroConfig, dtype: str) -> Callable[[Params, Batch], Params]:
  """The gradient of the loss, compiled once; activations are of that type."""
  model, nested = Retro(config, Execution(dtype=dtype)), traverse_util.unflatten_dict
  loss = lambda params, batch: loss_of_batch(model, nested(params, sep='/'), batch, 1.0)
  return jax.jit(jax.grad(loss))


def gradients(config: RetroConfig, dtype: str, params: Params, batch: Batch) -> dict[str, Array]:
  """All gradients of a group as one vector, in float64."""
  groups = collections.defaultdict(list)
  for path, x in jax.device_get(gradient_of(config, dtype)(params, batch)).items():
    groups[group_of(path)].append(x.astype(np.float64).ravel())
  return {group: np.concatenate(parts) for group, parts in groups.items()}


def relative_errors(
  config: RetroConfig, seq_len: int, batch_size: int, seed: int
) -> dict[str, dict[str, float]]:
  """By type and group, the norm of the error of a gradient over that of the float64 one."""
  params, batch = make_params(config, seed), make_batch(config, seq_len, batch_size, seed)
  found = {dtype: gradients(config, dtype, params, batch) for dtype in DTYPES}
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda x: x.astype(np.float64), params)
    exact = gradients(config, 'float64', wide, batch)
  error = lambda a, b: float(np.linalg.norm(a - b) / np.linalg.norm(b))
  return {
    dtype: {group: error(grads[group], exact[group]) for group in exact}
    for dtype, grads in found.items()
  }


def summary(values: list[float]) -> dict[str, float]:
  return {'median': float(np.median(values)), 'low': min(values), 'high': max(values)}


def show(figures: dict[str, float]) -> str:
  median, low, high = (f'{figures[name]:.1e}' for name in ('median', 'low', 'high'))
  return f'{median} ({low} to {high})'


@click.command()
@click.option('--seeds', default=5, show_default=True, help='Parameters and batches drawn.')
@click.option('--width', default=64, show_default=True)
@click.option('--layers', default=4, show_default=True)
@click.option('--seq_len', default=512, show_default=True)
@click.option('--batch_size', default=4, show_default=True)
@click.option('--out', type=click.Path(path_type=Path), help='Where the JSON result goes.')
def main(seeds, width, layers, seq_len, batch_size, out) -> None:
  config = make_config(width, layers)
  found = [relative_errors(config, seq_len, batch_size, seed) for seed in range(seeds)]
  groups = found[0][DTYPES[0]]
  errors = {
    dtype: {group: summary([f[dtype][group] for f in found]) for group in groups}
    for dtype in DTYPES
  }
  shape = {'width': width, 'layers': layers, 'seq_len': seq_len, 'batch_size': batch_size}
  device = jax.devices()[0].device_kind
  result = {'device': device, 'machine': platform.machine(), 'jax': jax.__version__, 'seeds': seeds}
  if out:
    out.write_text(json.dumps(result | shape | {'errors': errors}, indent=1) + '\n')
  click.echo(f'| group | {" | ".join(DTYPES)} |')
  click.echo('| --- ' * (len(DTYPES) + 1) + '|')
  for group in groups:
    click.echo(f'| {group} | ' + ' | '.join(show(errors[d][group]) for d in DTYPES) + ' |')


if __name__ == '__main__':
  main()

"""Cached decoding against full re-computation, and what a token costs at growing positions.

python experiments/benchmarks/decode.py --out=decode.json

All figures of one run are taken in turns, so that a load on the machine meets all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable
import json
import os
from pathlib import Path
import platform
import time

import click
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from instructretro_jax.inference.cache import compile_step, prefill
from instructretro_jax.inference.decode import DecodingLoop
from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.model.retro import Retro

NO_END = -1  # no token ends a row, so that every run makes the same number of tokens
NUM_NEIGHBOURS = 2


def quickstart_model(width: int, layers: int) -> Retro:
  """The model of gin/models/quickstart.gin, with another width or depth if asked."""
  decoder = DecoderConfig(
    vocab_size=4096,
    num_layers=layers,
    width=width,
    num_heads=max(1, width // 32),
    ff_width=4 * width,
    activation='gelu',
  )
  return Retro(
    RetroConfig(
      decoder=decoder,
      encoder_ff_width=width,
      cross_attention_layers=tuple(range(1, layers, 2)) or (0,),
      mask_neighbours=True,
      encoder_rotary=True,
      encoder_relative_bias=True,
    )
  )


def make_recomputing_decoder(
  model: Retro, prompt_len: int, num_new: int
) -> Callable[..., jax.Array]:
  """Greedy decoding by a full forward pass over the final length for every token."""
  length = prompt_len + num_new

  @jax.jit
  def decode(params, prompts_BP, neighbours_BNKR) -> jax.Array:
    tokens_BL = jnp.pad(prompts_BP, ((0, 0), (0, num_new)))

    def extend(position, tokens_BL):
      hidden_BLD, head_DV = model.apply(
        {'params': params}, tokens_BL, None, neighbours_BNKR, method='hidden_and_head'
      )
      here_BD = jax.lax.dynamic_index_in_dim(hidden_BLD, position - 1, axis=1, keepdims=False)
      return tokens_BL.at[:, position].set(jnp.argmax(here_BD @ head_DV, axis=-1))

    return jax.lax.fori_loop(prompt_len, length, extend, tokens_BL)[:, prompt_len:]

  return decode


def time_in_turns(
  runs: dict[str, Callable[[], object]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, object]]:
  """Seconds of each run, and what it returned in an unmeasured call before."""
  returned = {name: run() for name, run in runs.items()}
  secs: dict[str, list[float]] = {name: [] for name in runs}
  for _ in range(repeats):
    for name, run in runs.items():
      start = time.perf_counter()
      run()
      secs[name].append(time.perf_counter() - start)
  return secs, returned


def median_and_spread(values: list[float]) -> dict[str, float]:
  return {'median': float(np.median(values)), 'low': min(values), 'high': max(values)}


def compare_decoders(model, params, batch_sizes, prompt_len, num_new, repeats) -> list[dict]:
  """Tokens per second of both decoders, which must agree on the tokens."""
  C, rng = model.config.chunk_len, np.random.default_rng(0)
  decoder = DecodingLoop(model, (NO_END,), tokens_per_call=num_new)

  def decode(prompts: np.ndarray, neighbours: np.ndarray, num_new: int) -> np.ndarray:
    lengths = np.full(len(prompts), prompt_len, np.int32)
    mask = np.ones(neighbours.shape, bool)
    rows = decoder.begin(params, prompts, lengths, neighbours, mask, gate=1.0, max_new=num_new)
    tokens = [np.asarray(rows.token_B)[:, None]]
    if num_new > 1:
      _, more = decoder.advance(params, rows, gate=1.0, count=num_new - 1)
      tokens.append(np.asarray(more)[:, : num_new - 1])
    return np.concatenate(tokens, axis=1)

  recompute = make_recomputing_decoder(model, prompt_len, num_new)
  runs = {}
  for B in batch_sizes:
    prompts = rng.integers(1, model.config.decoder.vocab_size, (B, prompt_len), np.int32)
    neighbours = rng.integers(1, 4096, (B, NUM_NEIGHBOURS, 2 * C), np.int32)
    chunks = np.repeat(neighbours[:, None], (prompt_len + num_new) // C, axis=1)
    of_prompt = chunks[:, : prompt_len // C]
    runs[f'cached {B}'] = lambda p=prompts, n=of_prompt: decode(p, n, num_new)
    runs[f'prompt {B}'] = lambda p=prompts, n=of_prompt: decode(p, n, 1)
    runs[f'recomputed {B}'] = lambda p=prompts, n=chunks: np.asarray(recompute(params, p, n))
  secs, tokens = time_in_turns(runs, repeats)
  rows = []
  for B in batch_sizes:
    cached, recomputed, prompt = (
      np.array(secs[f'{name} {B}']) for name in ('cached', 'recomputed', 'prompt')
    )
    rows.append(
      {
        'batch_size': B,
        'cached_tokens_per_sec': median_and_spread((B * num_new / cached).tolist()),
        'recomputed_tokens_per_sec': median_and_spread((B * num_new / recomputed).tolist()),
        'ratio': median_and_spread((recomputed / cached).tolist()),
        'prompt_ms': median_and_spread((1000 * prompt).tolist()),
        'same_tokens': float((tokens[f'cached {B}'] == tokens[f'recomputed {B}']).mean()),
      }
    )
  return rows


def cost_by_position(model, params, positions, max_len, tokens_timed, repeats) -> list[dict]:
  """Milliseconds of a token behind prompts of growing length, batch 1, in one size of cache."""
  C, rng = model.config.chunk_len, np.random.default_rng(0)
  step, token = compile_step(model, is_open=True), np.array([1], np.int32)
  caches = {}
  for P in positions:
    tokens = rng.integers(1, 4096, (1, P), np.int32)
    neighbours = rng.integers(1, 4096, (1, P // C, NUM_NEIGHBOURS, 2 * C), np.int32)
    given = (params, tokens, np.array([P]), neighbours)
    start = jax.jit(
      lambda params, *inputs: model.apply(
        {'params': params}, *inputs, max_len=max_len, method=prefill
      )
    )
    caches[P] = start(*given)[0]

  def run(P: int) -> None:
    cache = jax.tree.map(jnp.copy, caches[P])  # a step takes the memory of its cache
    for _ in range(tokens_timed):
      cache, scores = step(params, cache, token)
    jax.block_until_ready(scores)

  secs, _ = time_in_turns({str(P): lambda P=P: run(P) for P in positions}, repeats)
  to_ms = 1000 / tokens_timed
  return [
    {'position': P, 'ms_per_token': median_and_spread([s * to_ms for s in secs[str(P)]])}
    for P in positions
  ]


def show(summary: dict[str, float], digits: int = 0) -> str:
  median, low, high = (f'{summary[name]:.{digits}f}' for name in ('median', 'low', 'high'))
  return f'{median} ({low}-{high})'


@click.command()
@click.option('--width', default=128, help='Decoder width; a multiple of 32.')
@click.option('--layers', default=4, help='Decoder layers.')
@click.option('--batch_sizes', default='1,8', help='Batch sizes, with commas.')
@click.option('--prompt_len', default=320, help='Tokens of a prompt; a multiple of 64.')
@click.option('--num_new', default=64, help='New tokens; a multiple of 64.')
@click.option('--repeats', default=5, help='Times that everything is measured.')
@click.option('--out', type=click.Path(path_type=Path), help='Where the JSON result goes.')
def main(width, layers, batch_sizes, prompt_len, num_new, repeats, out) -> None:
  model = quickstart_model(width, layers)
  C = model.config.chunk_len
  dummy = jnp.ones((1, C), int), None, jnp.ones((1, 1, 1, 2 * C), int)
  params = nn.unbox(jax.jit(model.init)(jax.random.key(0), *dummy))['params']
  sizes = [int(size) for size in batch_sizes.split(',')]
  result = {
    'device': jax.devices()[0].device_kind,
    'machine': platform.machine(),
    'cores': os.cpu_count(),
    'jax': jax.__version__,
    'width': width,
    'layers': layers,
    'prompt_len': prompt_len,
    'num_new': num_new,
    'repeats': repeats,
    'decoders': compare_decoders(model, params, sizes, prompt_len, num_new, repeats),
    # one whole chunk a measurement, so that the encoder runs once in each
    'positions': cost_by_position(model, params, (64, 256, 512, 1024), 1024 + C, C, repeats),
  }
  if out:
    out.write_text(json.dumps(result, indent=1) + '\n')
  click.echo(
    '| batch | cached, tokens/s | recomputed, tokens/s | ratio | prompt, ms | same tokens |'
  )
  click.echo('| --- | --- | --- | --- | --- | --- |')
  for row in result['decoders']:
    cached, recomputed = row['cached_tokens_per_sec'], row['recomputed_tokens_per_sec']
    click.echo(
      f'| {row["batch_size"]} | {show(cached)} | {show(recomputed, 1)} | {show(row["ratio"], 1)} '
      f'| {show(row["prompt_ms"])} | {row["same_tokens"]:.0%} |'
    )
  costs = [f'{r["position"]}: {show(r["ms_per_token"], 2)}' for r in result['positions']]
  click.echo('\nms per token behind a prompt of ' + ', '.join(costs))


if __name__ == '__main__':
  main()

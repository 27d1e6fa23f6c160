"""What a GPU makes of this project, in under nine minutes: one JSON record.

python experiments/gpu/check.py --out=gpu.json

Kernels against the plain form in float32; the true training step of an experiment, its tokens a
second and MFU; decoding beside transformers, if that is installed; and a short Retro-fit on
sequences whose neighbours hold what comes next. All data is drawn here. The record is written after
each part. The exit code is 1 if a kernel or the Retro-fit is not as it should be.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import json
from pathlib import Path
import statistics
import sys
import time
from typing import Any

import click
import jax
import jax.numpy as jnp
import numpy as np

from instructretro_jax.inference.decode import DecodingLoop
from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.model.cross_attention_init import CrossAttentionInit, init_cross_attention
from instructretro_jax.model.execution import Execution
from instructretro_jax.model.kernels import attend_causally
from instructretro_jax.model.retro import Retro
from instructretro_jax.model.sharding import ONE_DEVICE, local_mesh
from instructretro_jax.pipeline import gin_adapter
from instructretro_jax.pipeline.experiment import Experiment
from instructretro_jax.precompile import steps, topology
from instructretro_jax.train.compiled_step import CompiledStep, compile_step
from instructretro_jax.train.optimizer import AdamW
from instructretro_jax.train.state import abstract_params, first_state, fresh_params
from instructretro_jax.train.step import TrainState, losses_of_batch

ROOT = Path(__file__).resolve().parents[2]
C, NUM_NEIGHBOURS = 64, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
  """How large the parts are. Attention: [B, L, H, G, A] each; the step: a Retro arm."""

  attention: tuple[tuple[int, int, int, int, int], ...]
  gin_files: tuple[str, ...]
  batch_size: int
  decoder: DecoderConfig
  decode_batches: tuple[int, ...]
  num_new: int
  fit_width: int
  fit_steps: int
  fit_rate: float
  repeats: int


# the decoder is SmolLM2-135M's
SIZES = {
  'gpu': Size(
    attention=((4, 4096, 16, 16, 128), (8, 2048, 16, 4, 64)),
    gin_files=(
      'experiments/paper/retrofit.gin', 'gin/paper/retro_878m.gin', 'gin/meshes/h100_8.gin',
    ),
    batch_size=8,
    decoder=DecoderConfig(
      vocab_size=49152, num_layers=30, width=576, num_heads=9, num_kv_heads=3, ff_width=1536
    ),
    decode_batches=(1, 16),
    num_new=256,
    fit_width=256,
    fit_steps=200,
    fit_rate=3e-3,
    repeats=5,
  ),
  'toy': Size(
    attention=((1, 256, 4, 2, 8),),
    gin_files=('tests/tiny.gin',),
    batch_size=2,
    decoder=DecoderConfig(
      vocab_size=512, num_layers=2, width=64, num_heads=2, num_kv_heads=1, ff_width=128
    ),
    decode_batches=(2,),
    num_new=64,
    fit_width=64,
    fit_steps=40,
    fit_rate=1e-2,
    repeats=2,
  ),
}  # fmt: skip


def has_cudnn() -> bool:
  """Whether documents can be packed for cuDNN here: from Hopper on."""
  (device, *_) = jax.local_devices()
  return device.platform == 'gpu' and float(getattr(device, 'compute_capability', 0)) >= 9


def peak_flops() -> float | None:
  """Of this device in bfloat16; None if it is not known. H200 computes as H100 does."""
  kind = jax.local_devices()[0].device_kind
  return topology.CHIPS['h100'].peak_flops if 'H100' in kind or 'H200' in kind else None


def median_secs(run: Callable[[], Any], repeats: int) -> float:
  """Of calls after one that compiles; `run` returns arrays to wait for."""
  jax.block_until_ready(run())
  taken = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(run())
    taken.append(time.perf_counter() - start)
  return statistics.median(taken)


def check_kernels(size: Size) -> dict[str, Any]:
  """Errors of each kernel in bfloat16, output and gradients, against 'dot_product' in float32."""
  names = ('cudnn', 'dot_product') if has_cudnn() else ('dot_product',)
  rows = []
  for B, L, H, G, A in size.attention:
    rng = np.random.default_rng(0)
    draw = lambda heads: jnp.asarray(rng.normal(size=(B, L, heads, A)), jnp.bfloat16)
    q, k, v, weights = draw(H), draw(G), draw(G), draw(H)
    for segments in (None, jnp.asarray(_documents(rng, B, L))):
      real = 1.0 if segments is None else (segments > 0)[:, :, None, None]
      given = (q, k, v, (weights * real).astype(jnp.bfloat16))
      wide = [x.astype(jnp.float32) for x in given]
      with jax.default_matmul_precision('highest'):
        expected = jax.jit(functools.partial(_attention, segments, 'dot_product'))(*wide)
      for name in names:
        run = jax.jit(functools.partial(_attention, segments, name))
        found = run(*given)
        errors = [_relative_error(real * found[0], real * expected[0])]
        errors += map(_relative_error, found[1:], expected[1:])
        rows.append(
          {
            'kernel': name,
            'shape': {'B': B, 'L': L, 'H': H, 'G': G, 'A': A},
            'documents': segments is not None,
            'errors': dict(zip(('output', 'q', 'k', 'v'), errors)),
            'milliseconds': 1000 * median_secs(functools.partial(run, *given), size.repeats),
            'temporary_bytes': run.lower(*given).compile().memory_analysis().temp_size_in_bytes,
          }
        )
  worst = max(max(row['errors'].values()) for row in rows)
  why = {} if 'cudnn' in names else {'cudnn': 'not run: it needs a GPU, Hopper or later'}
  return {'rows': rows, 'worst_error': worst, 'is_right': worst < 0.02, **why}


def _attention(segments, kernel, q, k, v, weights):
  read, backward = jax.vjp(lambda *qkv: attend_causally(*qkv, segments, kernel), q, k, v)
  return read, *backward(weights)


def _documents(rng: np.random.Generator, batch_size: int, length: int) -> np.ndarray:
  """Documents that begin with a chunk, the last of whose tokens are padding."""
  begins = rng.random((batch_size, length // C)) < 0.3
  numbers = np.repeat(1 + np.cumsum(begins, axis=1), C, axis=1)
  ends = np.repeat(np.roll(begins, -1, axis=1), C, axis=1)
  return np.where(ends & (np.arange(length) % C > C // 2), 0, numbers)


def _relative_error(found: jax.Array, expected: jax.Array) -> float:
  expected = np.asarray(expected, np.float64)
  return float(np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected))


def check_step(size: Size) -> dict[str, Any]:
  """The step of the Retro arm that the gin files configure, on one device."""
  files = [str(ROOT / name) for name in size.gin_files]
  experiment, _ = gin_adapter.configure(Experiment, files, placeholder='not needed')
  arm = steps.find_arm(experiment, 'train', 'retro_fit')
  attention = 'cudnn' if has_cudnn() else 'dot_product'
  arm = dataclasses.replace(
    arm,
    mesh=ONE_DEVICE,
    batch_size=size.batch_size,
    num_microbatches=1,
    execution=dataclasses.replace(arm.execution, attention=attention, scan_layers=False),
  )
  mesh = local_mesh(ONE_DEVICE)
  step = steps.make_step(arm, 'train', mesh)
  state, function = _first(arm.compile_step(mesh), arm.model, arm.with_retrieval), step.function
  vocab_size, rng = arm.model.decoder.vocab_size, np.random.default_rng(0)
  batch = {
    name: jnp.asarray(rng.integers(1, vocab_size, x.shape), x.dtype)
    if name in ('tokens', 'targets', 'neighbours') else jnp.ones(x.shape, x.dtype)
    for name, x in step.arguments[1].items()
  }  # fmt: skip
  holder = [state]

  def run() -> jax.Array:
    with jax.set_mesh(mesh):
      holder[0], metrics = function(holder[0], batch)
    return metrics['loss']

  secs, peak = median_secs(run, size.repeats), peak_flops()
  stats = jax.local_devices()[0].memory_stats() or {}
  return {
    'arm': arm.name,
    'gin_files': size.gin_files,
    'attention': attention,
    'batch_size': arm.batch_size,
    'seq_len': arm.task.seq_len,
    'parameters': step.parameters,
    'seconds': secs,
    'tokens_per_sec': batch['tokens'].size / secs,
    'model_flops': step.model_flops,
    'mfu': None if peak is None else step.model_flops / secs / peak,
    'peak_flops': peak,
    'peak_bytes': stats.get('peak_bytes_in_use'),
    'loss': float(run()),
  }


def check_decoding(size: Size) -> dict[str, Any]:
  """New tokens a second behind prompts of four chunks, the gate closed; and of transformers."""
  config = RetroConfig(decoder=size.decoder, chunk_len=C, cross_attention_layers=(1,))
  mesh, num_new = local_mesh(ONE_DEVICE), size.num_new
  params = fresh_params(config, 0, abstract_params(config, False, mesh))
  loop = DecodingLoop(Retro(config, Execution(dtype='bfloat16')), (-1,), num_new)
  rows, rng = [], np.random.default_rng(0)
  for batch_size in size.decode_batches:
    prompts = rng.integers(1, size.decoder.vocab_size, (batch_size, 4 * C), np.int32)
    lengths = np.full(batch_size, 4 * C, np.int32)

    def run(prompts=prompts, lengths=lengths):
      begun = loop.begin(params, prompts, lengths, gate=0, max_new=num_new)
      return loop.advance(params, begun, gate=0, count=num_new - 1)[1]

    secs = median_secs(run, size.repeats)
    row = {'batch_size': batch_size, 'tokens_per_sec': batch_size * num_new / secs}
    rows.append(row | _transformers(size, prompts))
  return {'rows': rows, 'prompt_len': 4 * C, 'num_new': num_new, 'dtype': 'bfloat16'}


def _transformers(size: Size, prompts: np.ndarray) -> dict[str, Any]:
  """The same for a Llama of the same sizes and other weights, by the library's `generate`."""
  try:
    import torch
    import transformers
  except ImportError as error:
    return {'transformers': f'not run: {error}'}
  c, device = size.decoder, 'cuda' if torch.cuda.is_available() else 'cpu'
  model = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=c.vocab_size,
      hidden_size=c.width,
      intermediate_size=c.ff_width,
      num_hidden_layers=c.num_layers,
      num_attention_heads=c.num_heads,
      num_key_value_heads=c.kv_heads,
      tie_word_embeddings=True,
      eos_token_id=None,
      pad_token_id=0,
    )
  )
  model = model.to(device, torch.bfloat16).eval()
  given = torch.tensor(prompts, dtype=torch.long, device=device)
  options = {'max_new_tokens': size.num_new, 'do_sample': False, 'pad_token_id': 0}

  def run() -> np.ndarray:
    with torch.inference_mode():
      found = model.generate(given, attention_mask=torch.ones_like(given), **options)
    assert found.shape[1] == prompts.shape[1] + size.num_new, found.shape
    return found.cpu().numpy()

  secs = median_secs(run, size.repeats)
  version = f'transformers {transformers.__version__}, torch {torch.__version__} on {device}'
  return {
    'transformers': version,
    'transformers_tokens_per_sec': given.shape[0] * size.num_new / secs,
  }


def check_fit(size: Size) -> dict[str, Any]:
  """A Retro-fit of random tokens, each chunk's neighbours holding the next chunk among others.

  Nothing but the neighbours tells the next token, so that the loss falls below log(V) with them
  alone; random neighbours do not help.
  """
  V, L, batch_size = 256, 4 * C, 8
  config = RetroConfig(
    decoder=DecoderConfig(
      vocab_size=V,
      num_layers=2,
      width=size.fit_width,
      num_heads=size.fit_width // 32,
      ff_width=2 * size.fit_width,
      init_std=size.fit_width**-0.5,
      embedding_init_std=0.5 * size.fit_width**-0.5,
      embedding_scale=2 * size.fit_width**0.5,
    ),
    chunk_len=C,
    encoder_relative_bias=True,
    encoder_rotary=True,
    mask_neighbours=True,
    cross_attention_layers=(1,),
  )
  mesh = local_mesh(ONE_DEVICE)
  execution = Execution()
  if has_cudnn():
    execution = Execution(dtype='bfloat16', attention='cudnn')
  step = compile_step(
    config, execution, AdamW(learning_rate=size.fit_rate), mesh, num_steps=size.fit_steps,
    with_retrieval=True, gate=1.0, num_microbatches=1,
  )  # fmt: skip
  state = _first(step, config, True, CrossAttentionInit(kind='copy_ready'))
  batch_of = functools.partial(_copies, batch_size=batch_size, length=L, vocab_size=V)
  start = time.perf_counter()
  with jax.set_mesh(mesh):
    for n in range(size.fit_steps):
      state, metrics = step.function(state, batch_of(n))
    secs = time.perf_counter() - start
    model, params = Retro(config, execution), state.params
    opened = jax.jit(lambda batch: losses_of_batch(model, params, batch, 1.0))
    closed = jax.jit(lambda batch: losses_of_batch(model, params, batch, 0))
    heldout, other = batch_of(size.fit_steps), batch_of(size.fit_steps + 1)
    served = np.arange(L - 1) >= C - 1  # targets of later chunks than the first
    mean = lambda nats_BL: float(np.asarray(nats_BL)[:, : L - 1][:, served].mean())
    strangers = heldout | {'neighbours': other['neighbours']}
    own, random, off = map(mean, (opened(heldout), opened(strangers), closed(heldout)))
  nats = {'own': own, 'off': off, 'random': random}
  return {
    'steps': size.fit_steps,
    'seconds': secs,
    'last_loss': float(metrics['loss']),
    'heldout_nats': nats,
    'is_right': own < off - 1 and own < random - 1,
  }


def _copies(seed: int, *, batch_size: int, length: int, vocab_size: int) -> dict[str, jax.Array]:
  rng, N = np.random.default_rng(seed), length // C
  tokens = rng.integers(1, vocab_size, (batch_size, length + 2 * C), np.int32)
  chunks = tokens.reshape(batch_size, -1, C)
  right = np.concatenate([chunks[:, :N], chunks[:, 1 : N + 1]], axis=2)
  wrong = rng.integers(1, vocab_size, right.shape, np.int32)
  neighbours = np.stack([right, wrong], axis=2)
  targets = tokens[:, 1 : length + 1]
  found = {
    'tokens': tokens[:, :length],
    'targets': targets,
    'segments': np.ones_like(targets),
    'loss_mask': np.ones(targets.shape, np.float32),
    'neighbours': neighbours,
    'neighbour_mask': np.ones(neighbours.shape, bool),
  }
  return jax.tree.map(jnp.asarray, found)


def _first(
  step: CompiledStep,
  config: RetroConfig,
  with_retrieval: bool,
  init: CrossAttentionInit = CrossAttentionInit(),  # noqa: B008 (frozen)
) -> TrainState:
  """The state before the first step."""
  params = fresh_params(config, 0, abstract_params(config, with_retrieval, local_mesh(ONE_DEVICE)))
  return first_state(init_cross_attention(params, init), step.optimizer, step.state)


PARTS = {
  'kernels': check_kernels, 'fit': check_fit, 'step': check_step, 'decoding': check_decoding
}  # fmt: skip


@click.command()
@click.option('--out', required=True, type=click.Path(path_type=Path), help='The JSON record.')
@click.option('--size', default='gpu', show_default=True, type=click.Choice(SIZES))
@click.option('--minutes', default=8.5, show_default=True, help='No part begins after so many.')
def main(out: Path, size: str, minutes: float) -> None:
  """Runs all parts; see the top of this file."""
  start, (device, *others) = time.monotonic(), jax.local_devices()
  record: dict[str, Any] = {
    'size': size,
    'device': device.device_kind,
    'devices': 1 + len(others),
    'jax': jax.__version__,
    'python': sys.version.split()[0],
  }
  for name, check in PARTS.items():
    began = time.monotonic()
    if began - start > 60 * minutes:
      record[name] = {'not_run': f'{minutes} minutes were over'}
      continue
    record[name] = check(SIZES[size]) | {'part_seconds': time.monotonic() - began}
    out.write_text(json.dumps(record, indent=1) + '\n')
    click.echo(f'{name}: {json.dumps(record[name])}')
  record['seconds'] = time.monotonic() - start
  out.write_text(json.dumps(record, indent=1) + '\n')
  wrong = [name for name in PARTS if record[name].get('is_right') is False]
  if wrong:
    raise SystemExit(f'not as it should be: {", ".join(wrong)}; see {out}')


if __name__ == '__main__':
  main()

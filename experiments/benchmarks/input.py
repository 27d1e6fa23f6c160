"""Examples a second of the input, against the train step, and at the shape of the 43B model.

python experiments/benchmarks/input.py --out=input.json

The stores are synthetic: random tokens, documents of 16 chunks, random neighbours. All figures of
one shape are taken in turns, so that a load on the machine meets all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import dataclasses
import json
import os
from pathlib import Path
import platform
import tempfile
import time

import click
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from instructretro_jax.examples.sequences import ExampleSource, Sequences, example_ids
from instructretro_jax.examples.stream import batches
from instructretro_jax.model.config import RetroConfig
from instructretro_jax.model.retro import Retro
from instructretro_jax.model.sharding import MeshConfig, make_mesh, put_batch
from instructretro_jax.pipeline import gin_adapter
from instructretro_jax.pipeline.array_store import write_shard
from instructretro_jax.retrieval.neighbours import NeighbourTable
from instructretro_jax.text.chunks import ChunkStore
from instructretro_jax.train.optimizer import AdamW
from instructretro_jax.train.state import abstract_params, abstract_state, first_state, fresh_params
from instructretro_jax.train.step import make_train_step

_CHUNKS_PER_DOCUMENT = 16
_NUM_SAVED = 20  # neighbours of a chunk in the table
_NUM_NEIGHBOURS = 2  # of them in an example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
  """What is read: `num_chunks` of `chunk_len` tokens are stored."""

  num_chunks: int
  vocab_size: int
  seq_len: int
  batch_size: int
  chunk_len: int = 64


QUICKSTART = Shape(num_chunks=60_000, vocab_size=4096, seq_len=512, batch_size=2)
# on the disk 1 GB of tokens, four times what TensorStore may cache: most neighbours are not cached
PAPER = Shape(num_chunks=4_000_000, vocab_size=256_000, seq_len=4096, batch_size=12)


def write_store(folder: Path, shape: Shape) -> Sequences:
  """The examples of a random chunk store and neighbour table, written to `folder`."""
  rng = np.random.default_rng(0)
  M, C = shape.num_chunks, shape.chunk_len
  dtype = np.uint16 if shape.vocab_size <= 1 << 16 else np.int32
  documents = -(-M // _CHUNKS_PER_DOCUMENT)
  arrays = {
    'tokens': rng.integers(1, shape.vocab_size, (M, C), dtype),
    'length': np.full(M, C, np.int32),
    'document': np.arange(M, dtype=np.int32) // _CHUNKS_PER_DOCUMENT,
    'neighbours': rng.integers(0, M, (M, _NUM_SAVED), np.int32),
    'scores': np.zeros((M, _NUM_SAVED), np.float32),
  }
  for name, array in arrays.items():
    write_shard(folder, f'train-{name}', 0, array)
  names = pa.array([str(n) for n in range(documents)])
  table = pa.table({'id': names, 'source': names, 'group': names})
  pq.write_table(table, folder / 'train-documents-00000.parquet')
  store = ChunkStore(folder, 'train')
  return Sequences(store, shape.seq_len, 0, store, NeighbourTable(folder, 'train'), _NUM_NEIGHBOURS)


def draw(source: ExampleSource, shape: Shape, num_batches: int) -> Iterator[dict]:
  """The batches of a training run."""
  stop = num_batches * shape.batch_size
  return batches(source, seed=0, start=0, stop=stop, batch_size=shape.batch_size)


def draw_one_by_one(source: ExampleSource, shape: Shape, num_batches: int) -> Iterator[dict]:
  """The same, each example read by itself: what a block of examples is compared with."""
  first = source.examples(np.zeros(1, np.int64))

  def read(position: int) -> list[np.ndarray]:
    ids = example_ids(0, len(source), np.array([position]))
    return [array[0] for array in source.examples(ids).values()]

  def fetch(position: tf.Tensor) -> dict[str, tf.Tensor]:
    arrays = tf.numpy_function(read, [position], [array.dtype for array in first.values()])
    return {n: tf.ensure_shape(a, first[n].shape[1:]) for n, a in zip(first, arrays)}

  positions = tf.data.Dataset.range(num_batches * shape.batch_size)
  examples = positions.map(fetch, num_parallel_calls=2, deterministic=True)
  return examples.batch(shape.batch_size).prefetch(2).as_numpy_iterator()


def compile_step(shape: Shape, batch: dict[str, np.ndarray]) -> Callable[[], None]:
  """A train step of the quickstart's Retro model, to be called again and again."""
  config = gin_adapter.configure(RetroConfig, ['gin/models/quickstart.gin'])[0]
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  params = abstract_params(config, True, mesh)
  abstract, optimizer = abstract_state(params, AdamW(learning_rate=1e-3), 100)
  state = first_state(fresh_params(config, 0, params), optimizer, abstract)
  batch = {name: array for name, array in batch.items() if name != 'chunk_ids'}
  placed = put_batch(batch, mesh, shape.batch_size)
  step = jax.jit(make_train_step(Retro(config), optimizer, 1.0))
  return lambda: jax.block_until_ready(step(state, placed))


def secs_per_batch(batches_of: Iterator[dict], num_batches: int) -> float:
  """Seconds a batch, the first two left out: they wait for threads to start."""
  for _ in range(2):
    next(batches_of)
  start = time.perf_counter()
  for _ in range(num_batches - 2):
    next(batches_of)
  return (time.perf_counter() - start) / (num_batches - 2)


def compare(source: ExampleSource, shape: Shape, num_batches: int, repeats: int, step=None) -> dict:
  """Examples a second, read in blocks and one by one; with a step, its seconds too."""
  for mine, theirs in zip(draw(source, shape, 5), draw_one_by_one(source, shape, 5)):
    for name in mine:
      np.testing.assert_array_equal(mine[name], theirs[name])
  secs: dict[str, list[float]] = {'blocks': [], 'one_by_one': [], 'step': []}
  for _ in range(repeats):
    secs['blocks'].append(secs_per_batch(draw(source, shape, num_batches), num_batches))
    secs['one_by_one'].append(
      secs_per_batch(draw_one_by_one(source, shape, num_batches), num_batches)
    )
    if step is not None:
      start = time.perf_counter()
      step()
      secs['step'].append(time.perf_counter() - start)
  per_sec = lambda name: summary([shape.batch_size / s for s in secs[name]])
  result = {
    **dataclasses.asdict(shape),
    'examples_per_sec': per_sec('blocks'),
    'examples_per_sec_one_by_one': per_sec('one_by_one'),
  }
  if step is not None:
    result['step_secs'] = summary(secs['step'])
    ratios = [a / b for a, b in zip(secs['step'], secs['blocks'])]
    result['step_over_input'] = summary(ratios)
  return result


def summary(values: list[float]) -> dict[str, float]:
  return {'median': float(np.median(values)), 'low': min(values), 'high': max(values)}


def show(figures: dict[str, float], digits: int = 0) -> str:
  median, low, high = (f'{figures[name]:.{digits}f}' for name in ('median', 'low', 'high'))
  return f'{median} ({low}-{high})'


@click.command()
@click.option('--repeats', default=5, help='Times that everything is measured.')
@click.option('--paper_chunks', default=PAPER.num_chunks, help='Chunks in the larger store.')
@click.option('--out', type=click.Path(path_type=Path), help='Where the JSON result goes.')
def main(repeats, paper_chunks, out) -> None:
  paper = dataclasses.replace(PAPER, num_chunks=paper_chunks)
  with tempfile.TemporaryDirectory() as folder:
    source = write_store(Path(folder) / 'quickstart', QUICKSTART)
    step = compile_step(QUICKSTART, next(draw(source, QUICKSTART, 1)))
    step()
    quickstart = compare(source, QUICKSTART, 200, repeats, step)
    source = write_store(Path(folder) / 'paper', paper)
    large = compare(source, paper, 10, repeats)
  result = {
    'device': jax.devices()[0].device_kind,
    'machine': platform.machine(),
    'cores': os.cpu_count(),
    'jax': jax.__version__,
    'repeats': repeats,
    'quickstart': quickstart,
    'paper': large,
  }
  if out:
    out.write_text(json.dumps(result, indent=1) + '\n')
  click.echo('| shape | examples/s | one by one | step, ms | step / input |')
  click.echo('| --- | --- | --- | --- | --- |')
  for name in ('quickstart', 'paper'):
    row = result[name]
    cells = [show(row['examples_per_sec'], 1), show(row['examples_per_sec_one_by_one'], 1), '', '']
    if 'step_secs' in row:
      millis = {key: 1000 * value for key, value in row['step_secs'].items()}
      cells[2:] = [show(millis), show(row['step_over_input'])]
    click.echo(f'| {name} | ' + ' | '.join(cells) + ' |')


if __name__ == '__main__':
  main()

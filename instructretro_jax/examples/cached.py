"""Examples in sequential files: TFRecord, in the layout of seqio's offline cache.

A shard holds a run of positions of the stream of examples, in their order, so that reading the
shards one after the other is what training reads. The place of each record is kept beside it, so
that training goes on anywhere without reading what came before.
"""

from __future__ import annotations

from collections.abc import Iterator
import io
import json
from pathlib import Path

import numpy as np
import seqio
import tensorflow as tf

from instructretro_jax.pipeline import manifest, paths
from instructretro_jax.pipeline.atomic import atomic

SPLIT = 'train'
_INFO = seqio.get_cached_info_path('', SPLIT)
_STATS = seqio.get_cached_stats_path('', SPLIT)
_FRAME, _HEADER = 16, 12  # bytes that TFRecord adds to a record, and of them those before it


def write_shard(
  folder: Path, shard: int, num_shards: int, examples: Iterator[dict[str, np.ndarray]]
) -> None:
  """Writes a shard, which appears whole or not; one that is there already is kept."""
  path = _shard_path(folder, shard, num_shards)
  if path.exists():
    return
  offsets = [0]
  with atomic(path) as partial:
    with tf.io.TFRecordWriter(str(partial)) as writer:
      for example in examples:
        # protobuf takes no bools for the integers as which seqio stores them
        storable = {n: a.astype(np.int64) if a.dtype == bool else a for n, a in example.items()}
        record = seqio.dict_to_tfexample(storable).SerializeToString(deterministic=True)
        writer.write(record)
        offsets.append(offsets[-1] + len(record) + _FRAME)
    content = io.BytesIO()
    np.save(content, np.asarray(offsets[:-1], np.int64))
    manifest.write_bytes(_offsets_path(folder, shard), content.getvalue())


def finish(
  folder: Path, num_shards: int, num_examples: int, example: dict[str, np.ndarray]
) -> None:
  """Writes what seqio reads before the shards: the types, how many there are, that all is there.

  Args:
    example: any one, for the types and shapes, which all share.
  """
  features = {n: {'shape': a.shape, 'dtype': a.dtype.name} for n, a in example.items()}
  info = {'num_shards': num_shards, 'features': features, 'seqio_version': seqio.__version__}
  write = lambda name, value: manifest.write_text(folder / name, json.dumps(value, indent=1) + '\n')
  write(_INFO, info)
  write(_STATS, {'examples': num_examples})
  manifest.write_text(folder / 'COMPLETED', '')


def seqio_task(folder: Path, output_features: dict[str, seqio.Feature]) -> seqio.Task:
  """The cached task for seqio's own readers: `get_dataset(use_cached=True)` gives the examples.

  With seqio's interleaving of shards, the order is not that of training here.
  """
  seqio.add_global_cache_dirs([str(folder.parent)])
  unread = lambda split, shuffle_files: tf.data.Dataset.range(0)  # seqio insists on the cache
  source = seqio.FunctionDataSource(unread, splits=(SPLIT,))
  steps = [seqio.CacheDatasetPlaceholder(required=True)]
  return seqio.Task(folder.name, source, output_features=output_features, preprocessors=steps)


class CachedExamples:
  """An example source (see examples/sequences.py) that reads them from files."""

  def __init__(self, folder: Path, data_seed: int):
    info = json.loads((folder / _INFO).read_text())
    stats = json.loads((folder / _STATS).read_text())
    self._folder, self._seed, self._num = folder, data_seed, stats['examples']
    self._dtypes = {name: feature['dtype'] for name, feature in info['features'].items()}
    stored = lambda dtype: tf.float32 if dtype == 'float32' else tf.int64
    self._features = {
      name: tf.io.FixedLenFeature(feature['shape'], stored(feature['dtype']))
      for name, feature in info['features'].items()
    }
    shards = range(info['num_shards'])
    self._paths = [_shard_path(folder, n, len(shards)) for n in shards]
    self._ends = [path.stat().st_size for path in self._paths]
    self._offsets = [np.load(io.BytesIO(_offsets_path(folder, n).read_bytes())) for n in shards]
    self._first = np.cumsum([0, *map(len, self._offsets)])  # position at which a shard begins

  def __len__(self) -> int:
    return self._num

  def ids(self, seed: int, positions: np.ndarray) -> np.ndarray:
    """The positions themselves. Raises StageError for another order, or one beyond the files."""
    if seed != self._seed:
      raise manifest.StageError(
        f'{self._folder} holds the examples in the order of data_seed {self._seed}, not {seed}: '
        'set cache.Cache.data_seed and build it anew'
      )
    if len(positions) and positions.max() >= self._num:
      raise manifest.StageError(
        f'{self._folder} holds {self._num} examples, and training asks for that at position '
        f'{positions.max()}: raise cache.Cache.num_examples and build it anew'
      )
    return positions

  def examples(self, ids_B: np.ndarray) -> dict[str, np.ndarray]:
    """The examples at these positions, parsed from their records."""
    parsed = tf.io.parse_example([self._record(n) for n in ids_B], self._features)
    return {name: array.numpy().astype(self._dtypes[name]) for name, array in parsed.items()}

  def _record(self, position: int) -> bytes:
    shard = int(np.searchsorted(self._first, position, side='right')) - 1
    offsets, number = self._offsets[shard], position - self._first[shard]
    end = offsets[number + 1] if number + 1 < len(offsets) else self._ends[shard]
    start = int(offsets[number])
    return paths.read_range(self._paths[shard], start + _HEADER, int(end) - (_FRAME - _HEADER))


def _shard_path(folder: Path, shard: int, num_shards: int) -> Path:
  prefix = seqio.get_cached_tfrecord_prefix('', SPLIT)
  return folder / f'{prefix}-{shard:05d}-of-{num_shards:05d}'


def _offsets_path(folder: Path, shard: int) -> Path:
  return folder / f'offsets-{shard:05d}.npy'

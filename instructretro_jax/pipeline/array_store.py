"""Fixed-width arrays on disk or in a bucket, written in shards and read as one, by TensorStore."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from instructretro_jax.pipeline import paths
from instructretro_jax.pipeline.atomic import atomic, is_whole
from instructretro_jax.pipeline.manifest import StageError, is_finished, read_manifest

_ROWS_PER_FILE = 1 << 16
_BLOCK_BYTES = 1 << 14  # of a file, read and unpacked at once: neighbours are rows here and there
_CACHE_BYTES = 1 << 28


def write_shard(folder: Path, name: str, shard: int, array: np.ndarray) -> None:
  """Writes rows `array` as shard number `shard` of the array `name`; it appears whole or not.

  A shard that is there already is kept: a stage gives the same rows each time.
  """
  paths.make_folder(folder)
  path = _shard_path(folder, name, shard)
  if is_whole(path):
    return
  row_shape = array.shape[1:]
  codecs = [
    {'name': 'bytes', 'configuration': {'endian': 'little'}},
    {'name': 'zstd', 'configuration': {'level': 1}},
  ]
  blocks = {'chunk_shape': (_rows_per_block(array), *row_shape), 'codecs': codecs}
  files = {'chunk_shape': (_ROWS_PER_FILE, *row_shape)}
  spec = {
    'driver': 'zarr3',
    'metadata': {
      'shape': array.shape,
      'data_type': array.dtype.name,
      'chunk_grid': {'name': 'regular', 'configuration': files},
      'codecs': [{'name': 'sharding_indexed', 'configuration': blocks}],
    },
  }
  with atomic(path) as partial:
    spec['kvstore'] = kvstore(partial)
    store = ts.open(spec, create=True, delete_existing=True).result()
    if array.size:
      store.write(array).result()


def _rows_per_block(array: np.ndarray) -> int:
  """A power of two, since blocks divide a file evenly."""
  row_bytes = max(1, array.dtype.itemsize * math.prod(array.shape[1:]))
  return min(_ROWS_PER_FILE, 1 << (max(1, _BLOCK_BYTES // row_bytes).bit_length() - 1))


def has_shard(folder: Path, name: str, shard: int) -> bool:
  """Whether the shard was written whole."""
  return is_whole(_shard_path(folder, name, shard))


def kvstore(path: Path) -> dict[str, Any]:
  """How TensorStore is told of a path; of addresses it takes s3:// for that of Amazon alone."""
  if not paths.is_remote(path):
    return {'driver': 'file', 'path': str(path)}
  bucket, key = paths.bucket_and_key(path)
  if str(path).startswith('gs://'):
    return {'driver': 'gcs', 'bucket': bucket, 'path': f'{key}/'}
  spec = {'driver': 's3', 'bucket': bucket, 'path': f'{key}/'}
  if 'AWS_ACCESS_KEY_ID' in os.environ:
    spec['aws_credentials'] = {'type': 'environment'}  # else it looks for files, and notes them
  if endpoint := os.environ.get('AWS_ENDPOINT_URL_S3') or os.environ.get('AWS_ENDPOINT_URL'):
    region = os.environ.get('AWS_REGION') or os.environ.get('AWS_DEFAULT_REGION')
    spec |= {'endpoint': endpoint, 'aws_region': region or 'us-east-1'}
  return spec


class StoredArray:
  """A stored array of all its shards, one after the other.

  `array[ids]` gathers rows; a slice or an int works as in numpy. Rows come back as numpy arrays.
  """

  def __init__(self, folder: Path, name: str):
    shards = [_open(path) for path in _shard_paths(folder, name)]
    self.shard_lens = tuple(int(shard.shape[0]) for shard in shards)
    self._store = ts.concat(shards, axis=0) if len(shards) > 1 else shards[0]

  def __len__(self) -> int:
    return int(self._store.shape[0])

  @property
  def shape(self) -> tuple[int, ...]:
    """Rows of all shards, then the shape of a row."""
    return tuple(int(n) for n in self._store.shape)

  @property
  def dtype(self) -> np.dtype:
    """The numpy type of its values."""
    return np.dtype(self._store.dtype.numpy_dtype)

  def shard_range(self, shard: int) -> tuple[int, int]:
    """First row of a shard and first row after it."""
    start = sum(self.shard_lens[:shard])
    return start, start + self.shard_lens[shard]

  def __getitem__(self, rows) -> np.ndarray:
    """Gathers rows; repeated and unordered ids are read once, in order of storage."""
    if isinstance(rows, (slice, int, np.integer)):
      return np.asarray(self._store[rows].read().result())
    ids, inverse = np.unique(np.asarray(rows), return_inverse=True)
    if ids.size and (ids[0] < 0 or ids[-1] >= len(self)):
      raise IndexError(f'rows {ids[0]}..{ids[-1]} asked of an array with {len(self)} rows')
    if not ids.size:
      return np.zeros((*np.shape(rows), *self.shape[1:]), self.dtype)
    return np.asarray(self._store[ids].read().result())[inverse.reshape(np.shape(rows))]


@functools.cache
def _context() -> ts.Context:
  return ts.Context({'cache_pool': {'total_bytes_limit': _CACHE_BYTES}})


def _open(path: Path) -> ts.TensorStore:
  # any format that TensorStore recognises
  spec = {'driver': 'auto', 'kvstore': kvstore(path)}
  return ts.open(
    spec, open=True, read=True, context=_context(), recheck_cached_data='open'
  ).result()


def _shard_paths(folder: Path, name: str) -> list[Path]:
  """The shards in their order. Raises StageError if there is none, or one is missing."""
  found = {int(p.stem.rpartition('-')[2]): p for p in folder.glob(f'{name}-[0-9]*.zarr')}
  if not found:
    raise StageError(f'{folder} holds no array named {name!r}: run the stage that writes it first')
  written = [*found]
  if is_finished(folder):
    listed = {Path(file).parts[0] for file in read_manifest(folder).files}
    written += [_shard_of(part, name) for part in listed]
  if missing := sorted({*range(max(written) + 1)} - found.keys()):
    first = f'{name}-{missing[0]:05d}.zarr'
    raise StageError(
      f'{folder / first} is missing ({len(missing)} of {max(written) + 1} shards): rebuild with '
      f'--rebuild={folder.name}'
    )
  return [found[shard] for shard in sorted(found)]


def _shard_of(part: str, name: str) -> int:
  """The number of a shard of an array by the name of its folder; -1 of anything else."""
  number = part.removeprefix(f'{name}-').removesuffix('.zarr')
  return int(number) if part == f'{name}-{number}.zarr' and number.isdigit() else -1


def _shard_path(folder: Path, name: str, shard: int) -> Path:
  return folder / f'{name}-{shard:05d}.zarr'

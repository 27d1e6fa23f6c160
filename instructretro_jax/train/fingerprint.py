"""What identifies parameters: the sha256 of their paths and bytes."""

from __future__ import annotations

from collections.abc import Iterator
import hashlib

from flax import traverse_util
import jax
from jax.experimental import multihost_utils
import numpy as np

from instructretro_jax.array_types import Params
from instructretro_jax.model.layer_groups import layer_paths
from instructretro_jax.train.lazy_params import LazyArray, LazyParams

_PIECE_BYTES = 1 << 30  # of an array spread over processes that one of them holds at a time


def params_sha256(params: Params | LazyParams) -> str:
  """Identifies parameters by path, with one entry a layer, and bytes.

  Every process that holds a part must call it.
  """
  digest = hashlib.sha256()
  flat = traverse_util.flatten_dict(params, sep='/')
  held = [(n, p, i) for p, x in flat.items() for i, n in enumerate(layer_paths(p, x.shape))]
  for name, path, index in sorted(held):
    x = flat[path]
    x = x.read() if isinstance(x, LazyArray) else x
    digest.update(name.encode() + b'\0')
    for piece in _on_host(x if name == path else x[index]):
      digest.update(piece.tobytes())
  return digest.hexdigest()


def _on_host(x: np.ndarray | jax.Array) -> Iterator[np.ndarray]:
  """An array, whatever processes hold it: whole, or in slices along its first axis."""
  if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
    yield np.asarray(x)
    return
  rows = max(1, _PIECE_BYTES // (x.nbytes // len(x)))
  for start in range(0, len(x), rows):
    piece = jax.lax.dynamic_slice_in_dim(x, start, min(rows, len(x) - start))
    yield multihost_utils.process_allgather(piece, tiled=True)

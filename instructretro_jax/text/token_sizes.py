"""Tokens that stand for other bytes of their text than their piece does."""

from __future__ import annotations

from collections.abc import Iterable
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from instructretro_jax.pipeline import manifest
from instructretro_jax.text.tokens import Vocabulary


class TokenSizes:
  """Those of one shard of chunks while it is written.

  There are some where a vocabulary puts a space before a text, changes characters before it cuts a
  text into tokens (Unicode's normal forms), or has no token for a character.
  """

  def __init__(self, vocab: Vocabulary):
    self._usual = vocab.token_bytes().astype(np.int64)
    self._places: list[np.ndarray] = []
    self._bytes: list[np.ndarray] = []

  def add(self, chunk: int, ids: np.ndarray, sizes: np.ndarray, chunk_len: int) -> None:
    """Keeps what differs in a document that begins with a chunk of the shard."""
    differs = np.flatnonzero(self._usual[ids] != sizes)
    self._places.append(chunk * chunk_len + differs)
    self._bytes.append(sizes[differs])

  def write(self, path: Path) -> None:
    """Writes the tokens by place, counted through the shard; no file if there are none."""
    places = np.concatenate([np.zeros(0, np.int64), *self._places])
    if not len(places):
      return
    sizes = np.concatenate([np.zeros(0, np.int64), *self._bytes])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({'place': places, 'bytes': sizes}), sink)
    manifest.write_bytes(path, sink.getvalue().to_pybytes())

  @staticmethod
  def read(shards: Iterable[tuple[int, Path]], chunk_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Places, counted through all shards, and bytes.

    Args:
      shards: the first chunk of each, and its file, which may be missing.
    """
    places, sizes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for first, path in shards:
      if path.exists():
        table = pq.read_table(io.BytesIO(path.read_bytes()))
        places.append(table['place'].to_numpy() + first * chunk_len)
        sizes.append(table['bytes'].to_numpy())
    return np.concatenate(places), np.concatenate(sizes)

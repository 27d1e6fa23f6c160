"""The neighbour table: for each chunk, the nearest chunks of other documents."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from instructretro_jax.array_store import Array, has_shard, write_shard
from instructretro_jax.data.chunks import SPLITS, ChunkStore
from instructretro_jax.retrieval.build_index import open_index
from instructretro_jax.retrieval.overlap import shared_run
from instructretro_jax.stage import Stage

_OVERLAP_SAMPLE = 4000  # chunks of each split


class NeighbourTable:
  """Saved neighbours of one split, best first; -1 where there are fewer."""

  def __init__(self, folder: Path, split: str):
    self._ids = Array(folder, f'{split}-ids')
    self._scores = Array(folder, f'{split}-scores')

  def __len__(self) -> int:
    return len(self._ids)

  def ids(self, chunks: np.ndarray, k: int) -> np.ndarray:
    """Ids in the database of the first k neighbours, [..., k] int64."""
    if k > self._ids.shape[1]:
      raise ValueError(f'{k} neighbours asked for, {self._ids.shape[1]} are saved')
    return self._ids[chunks][..., :k].astype(np.int64)

  def scores(self, chunks: np.ndarray, k: int) -> np.ndarray:
    """Inner products with the query, [..., k]; -inf where there is no neighbour."""
    return self._scores[chunks][..., :k]


def drop_same_document(
  ids_QK: np.ndarray, scores_QK: np.ndarray, owner_M: np.ndarray, query_owner_Q: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """Keeps the first k hits from other documents than the query's, -1 behind them.

  A continuation never leaves the document of its hit, so this removes it from both.
  """
  keep = (ids_QK >= 0) & (owner_M[np.maximum(ids_QK, 0)] != query_owner_Q[:, None])
  order = np.argsort(~keep, axis=1, kind='stable')[:, :k]
  kept = np.take_along_axis(keep, order, axis=1)
  ids = np.where(kept, np.take_along_axis(ids_QK, order, axis=1), -1)
  return ids, np.where(kept, np.take_along_axis(scores_QK, order, axis=1), -np.inf)


def random_neighbours(chunks: np.ndarray, k: int, num_chunks: int, seed: int) -> np.ndarray:
  """Database ids [..., k] drawn from (seed, chunk id) alone: the control for real neighbours."""
  x = (np.asarray(chunks, np.uint64)[..., None] << np.uint64(8)) + np.arange(k, dtype=np.uint64)
  with np.errstate(over='ignore'):  # splitmix64 (Steele et al. 2014)
    x = x + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
  return (x % np.uint64(num_chunks)).astype(np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbours(Stage):
  """Searches the index for each chunk of both splits, shard by shard."""

  name: str = 'neighbours'
  chunks: str = 'chunks'
  embeddings: str = 'embeddings'
  index: str = 'index'
  num_searched: int = 100
  num_saved: int = 20

  def reads(self) -> tuple[str, ...]:
    return (self.chunks, self.embeddings, self.index)

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    index = open_index(root / self.index)
    owner_M = ChunkStore(root / self.chunks, 'train').document
    counts: dict[str, Any] = {}
    for split in SPLITS:
      store = ChunkStore(root / self.chunks, split)
      vectors = Array(root / self.embeddings, split)
      for shard in tqdm.trange(store.num_shards, desc=f'{self.name} {split}', unit='shard'):
        if has_shard(folder, f'{split}-ids', shard):
          continue
        low, high = store.shard_range(shard)
        ids, scores = index.search(vectors[low:high], self.num_searched)
        # held-out documents are not in the database: no number is theirs
        owner_Q = store.document[low:high] if split == 'train' else np.full(high - low, -1)
        ids, scores = drop_same_document(ids, scores, owner_M, owner_Q, self.num_saved)
        write_shard(folder, f'{split}-scores', shard, scores.astype(np.float32))
        write_shard(folder, f'{split}-ids', shard, ids.astype(_id_dtype(len(owner_M))))
      counts[split] = _statistics(root / self.chunks, folder, split)
    return counts


def _id_dtype(num_chunks: int) -> type:
  return np.int32 if num_chunks < 2**31 else np.int64


def _statistics(chunks: Path, folder: Path, split: str) -> dict[str, Any]:
  store, database = ChunkStore(chunks, split), ChunkStore(chunks, 'train')
  table = NeighbourTable(folder, split)
  saved = table.ids(np.arange(len(store)), table._ids.shape[1])
  step = max(1, len(store) // _OVERLAP_SAMPLE)
  sample = np.arange(0, len(store) - 1, step)
  sample = sample[store.document[sample] == store.document[sample + 1]]  # another chunk follows
  statistics = {
    'share_with_2': _share(saved[:, 1] >= 0),
    'share_with_all': _share(saved[:, -1] >= 0),
    'mean_score_of_first': _share(table.scores(np.arange(len(store)), 1)[saved[:, :1] >= 0]),
  }
  if not len(sample):
    return statistics
  rows = {'the_chunk': sample, 'the_next_chunk': sample + 1}
  found = {
    'neighbours': saved[sample, :2],
    'random': random_neighbours(sample, 2, len(database), seed=0),
  }
  for source, ids in found.items():
    tokens, mask = database.neighbour_tokens(ids, pad_id=0)
    for name, chunk in rows.items():
      real = np.arange(store.chunk_len) < store.length[chunk][:, None]
      runs = shared_run(store.tokens[chunk].astype(np.int32), real, tokens, mask)
      statistics[f'run_shared_by_{source}_with_{name}'] = {
        'mean': _share(runs),
        **{f'share_{n}_or_more': _share(runs >= n) for n in (8, 16, 32)},
      }
  return statistics


def _share(values: np.ndarray) -> float:
  return round(float(np.mean(values)), 4) if len(values) else 0.0

"""The stage of the neighbour table: each chunk of both splits searched in the index."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from instructretro_jax.pipeline import manifest
from instructretro_jax.pipeline.array_store import StoredArray, has_shard, write_shard
from instructretro_jax.pipeline.notes import note
from instructretro_jax.pipeline.progress import Bar
from instructretro_jax.pipeline.stage import Stage
from instructretro_jax.retrieval import neighbours
from instructretro_jax.retrieval.index_stage import open_index
from instructretro_jax.retrieval.others import search_others
from instructretro_jax.text.chunks import SPLITS, ChunkStore


@dataclasses.dataclass(frozen=True, kw_only=True)
class FindNeighbours(Stage):
  """Searches the index for the neighbours of every chunk of both splits.

  Hits from the query's own document are dropped, and where it has filled the hits, the search goes
  deeper. The continuation of a hit never leaves the document of the hit
  (ChunkStore.neighbour_tokens), so none of it is from that document either. Held-out documents are
  not in the database. Chunks without text have no neighbours.

  Attributes:
    drop_own: 'document', or 'group' to drop all that a split keeps on one side. Training then
      meets neighbours like those of evaluation, where the whole group is held out.
  """

  name: str = 'neighbours'
  chunks: str = 'chunks'
  embeddings: str = 'embeddings'
  index: str = 'index'
  num_searched: int = 100  # hits asked for, those to be dropped included
  num_saved: int = 20
  drop_own: str = 'document'

  def __post_init__(self):
    if self.drop_own not in ('document', 'group'):
      raise ValueError(f"drop_own must be 'document' or 'group', not {self.drop_own!r}")
    if not 1 <= self.num_saved <= self.num_searched:
      raise ValueError(f'num_saved={self.num_saved} is not 1 to num_searched={self.num_searched}')

  def reads(self) -> tuple[str, ...]:
    """The stages whose folders `build` reads."""
    return (self.chunks, self.embeddings, self.index)

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    """Writes the table of both splits, shard by shard."""
    index = open_index(root / self.index)
    database = ChunkStore(root / self.chunks, 'train')
    owner_M = database.group if self.drop_own == 'group' else database.document
    id_dtype = np.int32 if len(database) < 2**31 else np.int64
    database_vectors = StoredArray(root / self.embeddings, 'train-embeddings')
    counts: dict[str, Any] = {}
    for split in SPLITS:
      store = ChunkStore(root / self.chunks, split)
      vectors = StoredArray(root / self.embeddings, f'{split}-embeddings')
      for shard in Bar(range(store.num_shards), desc=f'{self.name} {split}', unit='shard'):
        if has_shard(folder, f'{split}-neighbours', shard):
          continue
        low, high = store.shard_range(shard)
        queries_QS = vectors[low:high]
        own_Q = owner_M[low:high] if split == 'train' else np.full(high - low, -1)
        asked = np.flatnonzero(queries_QS.any(axis=1))
        found = search_others(
          index, database_vectors, queries_QS[asked], owner_M, own_Q[asked],
          self.num_searched, self.num_saved,
        )  # fmt: skip
        ids = np.full((high - low, self.num_saved), -1, np.int64)
        scores = np.full(ids.shape, -np.inf, np.float32)
        dropped_Q = np.zeros(high - low, np.int32)
        ids[asked], scores[asked], dropped_Q[asked] = found
        # the ids last: they mark the shard as finished
        parts = {'dropped': dropped_Q, 'scores': scores, 'neighbours': ids.astype(id_dtype)}
        for name, array in parts.items():
          if not has_shard(folder, f'{split}-{name}', shard):  # from before a kill
            write_shard(folder, f'{split}-{name}', shard, array)
      dropped = int(StoredArray(folder, f'{split}-dropped')[:].sum(dtype=np.int64))
      table = neighbours.NeighbourTable(folder, split)
      counts[split] = {'chunks': len(store), 'dropped_own': dropped}
      manifest.check_count(folder, f'{split} rows', len(table), len(store))
      counts[split] |= neighbours.table_statistics(table, store, database)
      if few := 1 - counts[split]['share_with_all']:
        note(f'{self.name}: {few:.1%} of the {split} chunks have fewer than {self.num_saved}')
    return counts

"""The stage of the index over the database, with its measured recall."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from instructretro_jax.pipeline import manifest
from instructretro_jax.pipeline.array_store import StoredArray
from instructretro_jax.pipeline.atomic import atomic, is_whole
from instructretro_jax.pipeline.progress import Bar
from instructretro_jax.pipeline.stage import Stage
from instructretro_jax.retrieval.index import ExactIndex, Index, ShardedIndex, search_shards
from instructretro_jax.retrieval.recall import recall_at

_INDEX_FILE = 'index.json'
_RECALL_AT = (1, 2, 10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildIndex(Stage):
  """Indexes the train split and measures recall on held-out chunks, or on train ones if too few.

  Attributes:
    exact_below: databases with fewer chunks are searched exactly, others by ScaNN.
    shards: the database is cut into so many indexes, which are built one after the other.
  """

  name: str = 'index'
  embeddings: str = 'embeddings'
  exact_below: int = 10_000  # chunks
  recall_queries: int = 500
  shards: int = 1

  def __post_init__(self):
    if self.shards < 1 or self.recall_queries < 1:
      raise ValueError(f'{self}: shards and recall_queries are 1 or more')

  def reads(self) -> tuple[str, ...]:
    """The stages whose folders `build` reads."""
    return (self.embeddings,)

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    """Writes the shards of the index, and measures their recall."""
    vectors = StoredArray(root / self.embeddings, 'train-embeddings')
    if len(vectors) < self.shards:
      raise manifest.StageError(f'{len(vectors)} chunks cannot fill shards={self.shards}')
    kind = 'exact' if len(vectors) < self.exact_below else 'scann'
    ends = [int(end) for end in np.linspace(0, len(vectors), self.shards + 1)]
    ranges = list(itertools.pairwise(ends))
    for shard, (low, high) in enumerate(Bar(ranges, desc=self.name, unit='shard')):
      if not is_whole(folder / f'{shard:05d}'):
        with atomic(folder / f'{shard:05d}') as partial:
          _index_class(kind).build(vectors[low:high]).save(partial)
    manifest.write_text(folder / _INDEX_FILE, json.dumps({'kind': kind, 'first_ids': ends[:-1]}))
    queries = StoredArray(root / self.embeddings, 'heldout-embeddings')
    measured_on = 'heldout' if len(queries) >= self.recall_queries else 'train'
    queries = queries if measured_on == 'heldout' else vectors
    num_queries = min(self.recall_queries, len(queries))
    queries_QS = queries[np.linspace(0, len(queries) - 1, num_queries).astype(np.int64)]
    found, _ = open_index(folder).search(queries_QS, max(_RECALL_AT))
    parts = ((low, ExactIndex.build(vectors[low:high])) for low, high in ranges)
    exact, _ = search_shards(parts, queries_QS, max(_RECALL_AT))
    recall = {f'recall@{k}': round(recall_at(k, found, exact), 4) for k in _RECALL_AT}
    counts = {'kind': kind, 'vectors': len(vectors), 'recall_queries': num_queries}
    return {**counts, 'measured_on': measured_on, **recall}


def open_index(folder: Path) -> ShardedIndex:
  """The index of a finished stage, to be searched."""
  contents = json.loads((folder / _INDEX_FILE).read_text())
  load = _index_class(contents['kind']).load
  first_ids = contents['first_ids']
  return ShardedIndex([(first_ids[n], load(folder / f'{n:05d}')) for n in range(len(first_ids))])


def _index_class(kind: str) -> type[Index]:
  if kind == 'exact':
    return ExactIndex
  from instructretro_jax.retrieval.scann_index import ScannIndex

  return ScannIndex

"""The stages of retrieval: embeddings of all chunks, the index over them, the neighbour table."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import itertools
import json
import os
from pathlib import Path
import shutil
from typing import Any

import numpy as np
import tqdm

from instructretro_jax import manifest
from instructretro_jax.array_store import Array, has_shard, write_shard
from instructretro_jax.data import vocabulary
from instructretro_jax.data.chunks import SPLITS, ChunkStore
from instructretro_jax.retrieval import neighbours
from instructretro_jax.retrieval.embedder import Embedder
from instructretro_jax.retrieval.index import ExactIndex, Index, ShardedIndex, search_shards
from instructretro_jax.retrieval.recall import recall_at
from instructretro_jax.stage import Stage

_TEXTS_PER_BLOCK = 1024
_INDEX_FILE = 'index.json'
_RECALL_AT = (1, 2, 10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embeddings(Stage):
  """Writes one vector for each chunk of both splits; the embedder is fitted on the train split.

  A chunk without text (nothing but white space before its end of document) has the zero vector.
  """

  name: str = 'embeddings'
  chunks: str = 'chunks'
  vocabulary: str = 'vocabulary'
  embedder: Embedder

  def reads(self) -> tuple[str, ...]:
    return (self.chunks, self.vocabulary)

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    vocab = vocabulary.load(root / self.vocabulary)
    stores = {split: ChunkStore(root / self.chunks, split) for split in SPLITS}
    database = stores['train']
    database_texts = itertools.chain.from_iterable(_texts(database, vocab, 0, len(database)))
    folder.mkdir(parents=True, exist_ok=True)
    self.embedder.fit(database_texts, folder)
    embed = self.embedder.load(folder)
    counts = {}
    with tqdm.tqdm(total=sum(map(len, stores.values())), desc=self.name, unit='chunk') as bar:
      for split, store in stores.items():
        for shard in range(store.num_shards):
          low, high = store.shard_range(shard)
          if not has_shard(folder, f'{split}-embeddings', shard):
            vectors = [embed([''])[:0]]
            for texts in _texts(store, vocab, low, high):
              has_text = np.array([bool(text.strip()) for text in texts])
              vectors.append(np.where(has_text[:, None], embed(texts), np.float32(0)))
              bar.update(len(texts))
            write_shard(folder, f'{split}-embeddings', shard, np.concatenate(vectors))
          else:
            bar.update(high - low)
        embeddings_MS = Array(folder, f'{split}-embeddings')
        counts[split] = {'vectors': len(embeddings_MS), 'width': embeddings_MS.shape[1]}
    return counts


def _texts(
  store: ChunkStore, vocab: vocabulary.Vocabulary, low: int, high: int
) -> Iterator[list[str]]:
  """The texts of chunks low to high, in blocks."""
  for start in range(low, high, _TEXTS_PER_BLOCK):
    rows = slice(start, min(start + _TEXTS_PER_BLOCK, high))
    yield [
      vocab.decode(tokens[:length].tolist())
      for tokens, length in zip(store.tokens[rows], store.length[rows])
    ]


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
    return (self.embeddings,)

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    vectors = Array(root / self.embeddings, 'train-embeddings')
    if len(vectors) < self.shards:
      raise manifest.StageError(f'{len(vectors)} chunks cannot fill shards={self.shards}')
    kind = 'exact' if len(vectors) < self.exact_below else 'scann'
    ends = [int(end) for end in np.linspace(0, len(vectors), self.shards + 1)]
    ranges = list(itertools.pairwise(ends))
    for shard, (low, high) in enumerate(tqdm.tqdm(ranges, desc=self.name, unit='shard')):
      if not (folder / f'{shard:05d}').exists():
        partial = folder / 'shard.partial'
        shutil.rmtree(partial, ignore_errors=True)
        _index_class(kind).build(vectors[low:high]).save(partial)
        os.replace(partial, folder / f'{shard:05d}')
    manifest.write_text(folder / _INDEX_FILE, json.dumps({'kind': kind, 'first_ids': ends[:-1]}))
    queries = Array(root / self.embeddings, 'heldout-embeddings')
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
  from instructretro_jax.retrieval.scann_index import ScannIndex  # loads TensorFlow: only if used

  return ScannIndex


@dataclasses.dataclass(frozen=True, kw_only=True)
class FindNeighbours(Stage):
  """Searches the index for the neighbours of every chunk of both splits.

  Hits from the query's own document are dropped. The continuation of a hit never leaves the
  document of the hit (ChunkStore.neighbour_tokens), so none of it is from that document either.
  Held-out documents are not in the database. Chunks without text have no neighbours.

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
    return (self.chunks, self.embeddings, self.index)

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    index = open_index(root / self.index)
    database = ChunkStore(root / self.chunks, 'train')
    owner_M = database.group if self.drop_own == 'group' else database.document
    id_dtype = np.int32 if len(database) < 2**31 else np.int64
    counts: dict[str, Any] = {}
    for split in SPLITS:
      store = ChunkStore(root / self.chunks, split)
      vectors = Array(root / self.embeddings, f'{split}-embeddings')
      for shard in tqdm.trange(store.num_shards, desc=f'{self.name} {split}', unit='shard'):
        if has_shard(folder, f'{split}-neighbours', shard):
          continue
        low, high = store.shard_range(shard)
        queries_QS = vectors[low:high]
        ids_QK, scores_QK = index.search(queries_QS, self.num_searched)
        ids_QK[~queries_QS.any(axis=1)] = -1
        own_Q = owner_M[low:high] if split == 'train' else np.full(high - low, -1)
        ids, scores, dropped_Q = neighbours.drop_own(
          ids_QK, scores_QK, owner_M, own_Q, self.num_saved
        )
        # the ids last: they mark the shard as finished
        parts = {'dropped': dropped_Q, 'scores': scores, 'neighbours': ids.astype(id_dtype)}
        for name, array in parts.items():
          if not has_shard(folder, f'{split}-{name}', shard):  # from before a kill
            write_shard(folder, f'{split}-{name}', shard, array)
      dropped = int(Array(folder, f'{split}-dropped')[:].sum(dtype=np.int64))
      table = neighbours.NeighbourTable(folder, split)
      counts[split] = {'chunks': len(store), 'dropped_own': dropped}
      counts[split] |= neighbours.table_statistics(table, store, database)
    return counts

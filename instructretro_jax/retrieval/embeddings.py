"""The embeddings stage: one search vector for each chunk."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import tqdm

from instructretro_jax.array_store import Array, has_shard, write_shard
from instructretro_jax.data import vocabulary
from instructretro_jax.data.chunks import SPLITS, ChunkStore
from instructretro_jax.retrieval.embedder import Embedder
from instructretro_jax.stage import Stage


def chunk_texts(store: ChunkStore, vocab: vocabulary.Vocabulary, shard: int) -> list[str]:
  """The texts of all chunks of one shard."""
  low, high = store.shard_range(shard)
  tokens_MC, length_M = store.tokens[low:high], store.length[low:high]
  return [vocab.decode(row[:n].tolist()) for row, n in zip(tokens_MC, length_M)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embeddings(Stage):
  """Embeds the chunks of both splits, shard by shard; fits the embedder on the database."""

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
    shards = range(database.num_shards)
    self.embedder.fit((t for s in shards for t in chunk_texts(database, vocab, s)), folder)
    embed = self.embedder.load(folder)
    work = [(split, shard) for split in SPLITS for shard in shards]
    for split, shard in tqdm.tqdm(work, desc=self.name, unit='shard'):
      if not has_shard(folder, split, shard):
        write_shard(folder, split, shard, embed(chunk_texts(stores[split], vocab, shard)))
    return {split: {'vectors': len(Array(folder, split))} for split in SPLITS}

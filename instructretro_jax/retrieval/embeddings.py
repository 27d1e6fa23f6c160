"""The stage of embeddings: one search vector for each chunk."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from instructretro_jax.pipeline import manifest, paths
from instructretro_jax.pipeline.array_store import StoredArray, has_shard, write_shard
from instructretro_jax.pipeline.progress import Bar
from instructretro_jax.pipeline.stage import Stage
from instructretro_jax.retrieval.embedder import Embedder
from instructretro_jax.text import vocabulary
from instructretro_jax.text.chunks import SPLITS, ChunkStore

_TEXTS_PER_BLOCK = 1024


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
    """The stages whose folders `build` reads."""
    return (self.chunks, self.vocabulary)

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    """Writes the vectors of both splits, shard by shard."""
    vocab = vocabulary.load(root / self.vocabulary)
    stores = {split: ChunkStore(root / self.chunks, split) for split in SPLITS}
    database = stores['train']
    database_texts = itertools.chain.from_iterable(_texts(database, vocab, 0, len(database)))
    paths.make_folder(folder)
    self.embedder.fit(database_texts, folder)
    embed = self.embedder.load(folder)
    counts = {}
    with Bar(total=sum(map(len, stores.values())), desc=self.name, unit='chunk') as bar:
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
        embeddings_MS = StoredArray(folder, f'{split}-embeddings')
        manifest.check_count(folder, f'{split} vectors', len(embeddings_MS), len(store))
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

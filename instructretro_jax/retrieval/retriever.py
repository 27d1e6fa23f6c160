"""Neighbours of a text, looked up while it is written: embedder, index and chunks of a run."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import hashlib
from pathlib import Path
from typing import Protocol

import numpy as np

from instructretro_jax.pipeline import content, manifest
from instructretro_jax.retrieval import embedder
from instructretro_jax.retrieval.embedder import EmbedTexts
from instructretro_jax.retrieval.index import ShardedIndex
from instructretro_jax.retrieval.index_stage import open_index
from instructretro_jax.text import vocabulary
from instructretro_jax.text.chunks import ChunkStore


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbour:
  """A text for the encoder: at most R tokens are read."""

  tokens: Sequence[int]
  text: str
  chunk_id: int | None = None  # of the database, with the document and the score of the search
  document: str | None = None
  score: float | None = None


class Retriever(Protocol):
  """What finds neighbours for texts while they are written."""

  def find(self, texts: Sequence[str], num_neighbours: int) -> list[list[Neighbour]]:
    """The neighbours of each text, best first; none of a text of nothing but white space."""


class LiveRetriever:
  """Finds the chunks nearest to a chunk of text, each with its continuation.

  Neighbours keep the tokens of the database where the model has the same vocabulary; otherwise
  their text is tokenized anew.

  Args:
    database: the train split of a chunk store, in whose order the index counts.
    vocab: of the database.
    model_vocab: of the model that reads the neighbours.
  """

  def __init__(
    self,
    database: ChunkStore,
    vocab: vocabulary.Vocabulary,
    embed: EmbedTexts,
    index: ShardedIndex,
    model_vocab: vocabulary.Vocabulary,
  ):
    self._database, self._vocab, self._embed, self._index = database, vocab, embed, index
    self._model_vocab = model_vocab
    self._is_same = vocabulary.fingerprint(vocab) == vocabulary.fingerprint(model_vocab)

  def find(self, texts: Sequence[str], num_neighbours: int) -> list[list[Neighbour]]:
    """The neighbours of each text, best first; none of a text of nothing but white space."""
    vectors_QS = self._embed(texts)
    ids_QK, scores_QK = self._index.search(vectors_QS, num_neighbours)
    has_text = np.array([bool(text.strip()) for text in texts]) & vectors_QS.any(axis=1)
    return [
      [self.neighbour(int(i), float(score)) for i, score in zip(ids, scores) if i >= 0 and usable]
      for ids, scores, usable in zip(ids_QK, scores_QK, has_text)
    ]

  @property
  def num_chunks(self) -> int:
    """M: chunks that can be neighbours."""
    return len(self._database)

  def neighbour(self, chunk: int, score: float | None = None) -> Neighbour:
    """A chunk of the database with its continuation."""
    database = self._database
    tokens_R, mask_R = database.neighbour_tokens(np.array(chunk), self._vocab.pad_id)
    tokens = tokens_R[mask_R].tolist()
    text = self._vocab.decode(tokens)
    return Neighbour(
      tokens=tokens if self._is_same else self._model_vocab.encode(text),
      text=text,
      chunk_id=chunk,
      document=database.provenance(int(database.document[chunk]))['id'],
      score=score,
    )


class RandomRetriever:
  """Finds chunks that have nothing to do with a text: the control of a retriever.

  Which they are is decided by the text alone.
  """

  def __init__(self, retriever: LiveRetriever):
    self._retriever = retriever

  def find(self, texts: Sequence[str], num_neighbours: int) -> list[list[Neighbour]]:
    """Different chunks for each text; none for a text of nothing but white space."""
    return [self._drawn(text, num_neighbours) if text.strip() else [] for text in texts]

  def _drawn(self, text: str, num_neighbours: int) -> list[Neighbour]:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16])
    M = self._retriever.num_chunks
    ids = np.random.default_rng(seed).choice(M, min(M, num_neighbours), replace=False)
    return [self._retriever.neighbour(int(i)) for i in ids]


def open_retriever(
  root: Path, model_vocab: vocabulary.Vocabulary, index: str = 'index'
) -> LiveRetriever:
  """The retriever of a run folder, with the stages that its stage `index` was made of.

  Raises StageError if one of them is not there, or a file of the embedder has changed.
  """
  embeddings = root / manifest.read_manifest(root / index).plan.arguments['embeddings']
  made = manifest.read_manifest(embeddings).plan
  arguments = made.arguments
  embeds = embedder.from_manifest(arguments['embedder'])
  content.refuse_changed(embeds, made.inputs, embeddings)
  return LiveRetriever(
    ChunkStore(root / arguments['chunks'], 'train'),
    vocabulary.load(root / arguments['vocabulary']),
    embeds.load(embeddings),
    open_index(root / index),
    model_vocab,
  )

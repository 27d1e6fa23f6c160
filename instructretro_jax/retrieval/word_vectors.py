"""The instant embedder: idf-weighted sum of a BERT's word vectors, no transformer run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
import io
from pathlib import Path

import numpy as np
import scipy.sparse

from instructretro_jax import manifest
from instructretro_jax.retrieval.bert import read_checkpoint
from instructretro_jax.retrieval.embedder import EmbedTexts, normalize

_FILE = 'idf.npy'


def count_pieces(path: str | None, texts: Sequence[str]) -> scipy.sparse.csr_matrix:
  """Which word pieces each text has, [M, pieces], 1 or 0."""
  checkpoint = read_checkpoint(path)
  encoded = checkpoint.tokenizer.encode_batch(list(texts), add_special_tokens=False)
  pieces = [np.unique(np.array(e.ids, np.int64)) for e in encoded]
  ends = np.cumsum([0, *(len(p) for p in pieces)])
  columns = np.concatenate([np.zeros(0, np.int64), *pieces])
  shape = (len(texts), checkpoint.config['vocab_size'])
  return scipy.sparse.csr_matrix((np.ones(len(columns), np.float32), columns, ends), shape)


@dataclasses.dataclass(frozen=True)
class WordVectors:
  """Sum over a text's distinct word pieces of idf times the centred word vector, L2-normalised.

  Attributes:
    path: folder of any BERT checkpoint with safetensors; the packaged MiniLM where None.
  """

  path: str | None = None

  def fit(self, texts: Iterable[str], folder: Path) -> None:
    """Writes the inverse document frequency of each word piece over the database."""
    num_texts, seen = 0, 0
    for block in _blocks(texts, 4096):
      seen = seen + np.asarray(count_pieces(self.path, block).sum(axis=0)).ravel()
      num_texts += len(block)
    if not num_texts:
      raise manifest.StageError('the database has no chunk to count words in')
    buffer = io.BytesIO()
    np.save(buffer, np.log((num_texts + 1) / (seen + 1)).astype(np.float32))
    manifest.write_bytes(folder / _FILE, buffer.getvalue())

  def load(self, folder: Path) -> EmbedTexts:
    table_VS = read_checkpoint(self.path).tensors['embeddings.word_embeddings.weight']
    idf_V = np.load(folder / _FILE)
    weighted_VS = (table_VS - table_VS.mean(axis=0)) * idf_V[:, None]

    def embed(texts: Sequence[str]) -> np.ndarray:
      return normalize(count_pieces(self.path, texts) @ weighted_VS)

    return embed


def _blocks(texts: Iterable[str], size: int) -> Iterable[list[str]]:
  block: list[str] = []
  for text in texts:
    block.append(text)
    if len(block) == size:
      yield block
      block = []
  if block:
    yield block

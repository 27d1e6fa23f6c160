"""The instant embedder: idf-weighted sum of a BERT's word vectors, no transformer run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
import io
import itertools
from pathlib import Path

import numpy as np
import scipy.sparse

from instructretro_jax.pipeline import manifest
from instructretro_jax.retrieval.embedder import EmbedTexts, normalize
from instructretro_jax.retrieval.minilm import Checkpoint, checkpoint_files, read_checkpoint

IDF_FILE = 'idf.npy'
_TEXTS_PER_BLOCK = 4096


def distinct_pieces(checkpoint: Checkpoint, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """The (text, word piece) pairs that occur, once each, ordered by text."""
  encodings = checkpoint.tokenizer.encode_batch(list(texts), add_special_tokens=False)
  num_pieces = np.array([len(encoding.ids) for encoding in encodings], np.int64)
  pieces = np.fromiter(
    itertools.chain.from_iterable(encoding.ids for encoding in encodings), np.int64
  )
  text_of_piece = np.repeat(np.arange(len(texts)), num_pieces)
  vocab_size = checkpoint.config['vocab_size']
  return np.divmod(np.unique(text_of_piece * vocab_size + pieces), vocab_size)


@dataclasses.dataclass(frozen=True)
class WordVectors:
  """Sum over a text's distinct word pieces of idf times the centred word vector, L2-normalised.

  The idf of a piece is log((1 + chunks) / (1 + chunks that have it)), of the database alone.

  Attributes:
    path: folder of any BERT checkpoint with safetensors; the packaged MiniLM where None.
  """

  path: str | None = None

  def input_files(self) -> tuple[Path, ...]:
    """Those of the checkpoint."""
    return checkpoint_files(self.path)

  def fit(self, texts: Iterable[str], folder: Path) -> None:
    """Writes the idf of every word piece. Raises StageError if there is no text at all."""
    if (folder / IDF_FILE).exists():
      return
    checkpoint = read_checkpoint(self.path)
    num_texts, texts_with_V = 0, np.zeros(checkpoint.config['vocab_size'], np.int64)
    texts = iter(texts)
    while block := list(itertools.islice(texts, _TEXTS_PER_BLOCK)):
      _, pieces = distinct_pieces(checkpoint, block)
      texts_with_V += np.bincount(pieces, minlength=len(texts_with_V))
      num_texts += len(block)
    if not num_texts:
      raise manifest.StageError('the database has no chunk: there are no words to count')
    content = io.BytesIO()
    np.save(content, np.log((1 + num_texts) / (1 + texts_with_V)).astype(np.float32))
    manifest.write_bytes(folder / IDF_FILE, content.getvalue())

  def load(self, folder: Path) -> EmbedTexts:
    """The function that embeds, with the idf of the database."""
    checkpoint = read_checkpoint(self.path)
    table_VS = np.asarray(checkpoint.tensors['embeddings.word_embeddings.weight'], np.float32)
    idf_V = np.load(io.BytesIO((folder / IDF_FILE).read_bytes()))
    weighted_VS = (table_VS - table_VS.mean(axis=0)) * idf_V[:, None]

    def embed(texts: Sequence[str]) -> np.ndarray:
      rows, pieces = distinct_pieces(checkpoint, texts)
      has_MV = scipy.sparse.csr_array(
        (np.ones(len(rows), np.float32), (rows, pieces)), (len(texts), len(idf_V))
      )
      return normalize(has_MV @ weighted_VS)

    return embed

"""The chunk store: every document cut into chunks of C tokens, each chunk with one id."""

from __future__ import annotations

import dataclasses
import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from instructretro_jax.pipeline import manifest
from instructretro_jax.pipeline.array_store import StoredArray, write_shard
from instructretro_jax.pipeline.progress import Bar
from instructretro_jax.pipeline.stage import Stage
from instructretro_jax.text import corpus, vocabulary
from instructretro_jax.text.token_sizes import TokenSizes

SPLITS = ('train', 'heldout')


def split_into_chunks(
  tokens: np.ndarray, chunk_len: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Cuts one document from its own start; the last chunk is padded.

  Returns: tokens_MC and the number of real tokens in each chunk, length_M.
  """
  num_chunks = -(-len(tokens) // chunk_len)
  padded = np.full(num_chunks * chunk_len, pad_id, np.int32)
  padded[: len(tokens)] = tokens
  length_M = np.full(num_chunks, chunk_len, np.int32)
  length_M[-1:] = len(tokens) - (num_chunks - 1) * chunk_len
  return padded.reshape(num_chunks, chunk_len), length_M


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunks(Stage):
  """Tokenizes both splits, ends each document with EOD, and cuts it into chunks.

  A document begins with what the vocabulary begins texts with, if anything.
  Chunk ids count through the shards of a split; the database of retrieval is the train split.
  """

  name: str = 'chunks'
  corpus: str = 'corpus'
  vocabulary: str = 'vocabulary'
  chunk_len: int = 64  # C, tokens

  def reads(self) -> tuple[str, ...]:
    """The stages whose folders `build` reads."""
    return (self.corpus, self.vocabulary)

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    """Writes the chunks of both splits, shard by shard."""
    vocab = vocabulary.load(root / self.vocabulary)
    shards = range(corpus.num_shards(root / self.corpus))
    work = [(split, shard) for split in SPLITS for shard in shards]
    for split, shard in Bar(work, desc=self.name, unit='shard'):
      if not _table_path(folder, split, shard).exists():
        self._write_shard(root / self.corpus, folder, vocab, split, shard)
    counts = {'chunk_len': self.chunk_len}
    for split in SPLITS:
      store = ChunkStore(folder, split)
      num_documents = corpus.num_documents(root / self.corpus, split)
      manifest.check_count(folder, f'{split} documents', store.num_documents, num_documents)
      length_M = store.length[:]
      counts[split] = {
        'documents': store.num_documents,
        'chunks': len(store),
        'tokens': int(length_M.sum()),
        'padding_fraction': round(1 - float(length_M.mean()) / self.chunk_len, 4),
      }
    return counts

  def _write_shard(
    self, documents: Path, folder: Path, vocab: vocabulary.Vocabulary, split: str, shard: int
  ) -> None:
    dtype = np.uint16 if vocab.vocab_size <= 1 << 16 else np.int32
    tokens, lengths, owners, rows = [np.zeros((0, self.chunk_len), dtype)], [], [], []
    sizes, first = TokenSizes(vocab), 0
    for n, document in enumerate(corpus.read_documents(documents, split, shard)):
      ids, bytes_of = vocab.document(document.text)
      sizes.add(first, ids, bytes_of, self.chunk_len)
      tokens_MC, length_M = split_into_chunks(ids, self.chunk_len, vocab.pad_id)
      first += len(tokens_MC)
      tokens.append(tokens_MC.astype(dtype))
      lengths.append(length_M)
      owners.append(np.full(len(length_M), n, np.int32))
      rows.append(
        {'id': document.id, 'source': document.source, 'group': document.group,
         'num_chunks': len(length_M)}
      )  # fmt: skip
    empty = np.zeros(0, np.int32)
    write_shard(folder, f'{split}-tokens', shard, np.concatenate(tokens))
    write_shard(folder, f'{split}-length', shard, np.concatenate([empty, *lengths]))
    write_shard(folder, f'{split}-document', shard, np.concatenate([empty, *owners]))
    schema = pa.schema(
      [('id', pa.string()), ('source', pa.string()), ('group', pa.string()),
       ('num_chunks', pa.int64())]
    )  # fmt: skip
    sizes.write(_sizes_path(folder, split, shard))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink)
    manifest.write_bytes(_table_path(folder, split, shard), sink.getvalue().to_pybytes())


class ChunkStore:
  """Reads one split of a finished (or, while it is being built, complete) chunk folder.

  Attributes:
    tokens: array of shape [M, C].
    length: real tokens in each chunk, [M].
  """

  def __init__(self, folder: Path, split: str):
    if split not in SPLITS:
      raise ValueError(f'split must be one of {SPLITS}, not {split!r}')
    self._folder, self._split = folder, split
    self.tokens = StoredArray(folder, f'{split}-tokens')
    self.length = StoredArray(folder, f'{split}-length')
    self._owner = StoredArray(folder, f'{split}-document')  # counted within a shard
    self._shard_ends = np.cumsum(self._owner.shard_lens)

  def __len__(self) -> int:
    return len(self.tokens)

  @property
  def chunk_len(self) -> int:
    """C, tokens."""
    return self.tokens.shape[1]

  @property
  def num_shards(self) -> int:
    """Shards that the split is stored in."""
    return len(self.tokens.shard_lens)

  def shard_range(self, shard: int) -> tuple[int, int]:
    """First chunk id of a shard and first id after it."""
    return self.tokens.shard_range(shard)

  @functools.cached_property
  def document(self) -> np.ndarray:
    """Document number of each chunk, [M] int32, counted through the whole split."""
    return self._owner[:] + np.repeat(self._first_document, self._owner.shard_lens)

  def documents(self, chunks: np.ndarray) -> np.ndarray:
    """As `document[chunks]`, int32, of a store whose documents do not fit into memory."""
    shard = np.searchsorted(self._shard_ends, chunks, side='right')
    return self._owner[chunks] + self._first_document[shard]

  @functools.cached_property
  def group(self) -> np.ndarray:
    """Number of the group (what a split keeps together) of each chunk, [M] int32."""
    names = [name for table in self._tables for name in table['group'].to_pylist()]
    _, group_of_document = np.unique(np.array(names, dtype=np.str_), return_inverse=True)
    return group_of_document.astype(np.int32)[self.document]

  @property
  def num_documents(self) -> int:
    """Documents of the split."""
    return sum(len(table) for table in self._tables)

  def provenance(self, document: int) -> dict[str, Any]:
    """Id, source, group and number of chunks of a document."""
    for table in self._tables:
      if document < len(table):
        return table.slice(document, 1).to_pylist()[0]
      document -= len(table)
    raise IndexError(f'the {self._split} split has no document {document}')

  def neighbour_tokens(self, ids: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Text of neighbours: each hit and its continuation, which never leaves the document.

    Args:
      ids: chunk ids of any shape [...]; -1 where there is no neighbour.

    Returns: tokens [..., R] int32 with R = 2C, and mask [..., R], True on real tokens.
    """
    present = ids >= 0
    hit = np.where(present, ids, 0)
    after = np.minimum(hit + 1, len(self) - 1)
    continues = present & (after > hit) & (self.documents(after) == self.documents(hit))
    rows = np.stack([hit, np.where(continues, after, hit)], axis=-1)
    tokens = self.tokens[rows].astype(np.int32)  # [..., 2, C]
    length = self.length[rows] * np.stack([present, continues], axis=-1)
    mask = np.arange(self.chunk_len) < length[..., None]
    flat = (*ids.shape, 2 * self.chunk_len)
    return np.where(mask, tokens, pad_id).reshape(flat), mask.reshape(flat)

  def token_bytes(self, ids: np.ndarray, vocab: vocabulary.Vocabulary) -> np.ndarray:
    """UTF-8 bytes of text that each token of some chunks stands for, [..., C] int64.

    Over a document they add up to the bytes of its text. An id of -1 is no chunk.
    """
    places = np.arange(self.chunk_len)
    real = places < np.where(ids < 0, 0, self.length[np.maximum(ids, 0)])[..., None]
    usual = vocab.token_bytes()[self.tokens[np.maximum(ids, 0)]].astype(np.int64)
    sizes = np.where(real, usual, 0)
    unusual, bytes_of = self._unusual
    if len(unusual):
      flat = ids[..., None] * self.chunk_len + places
      n = np.searchsorted(unusual, flat).clip(max=len(unusual) - 1)
      sizes = np.where(real & (unusual[n] == flat), bytes_of[n], sizes)
    return sizes

  @functools.cached_property
  def _unusual(self) -> tuple[np.ndarray, np.ndarray]:
    """Places of tokens whose bytes are not those of their piece, and those bytes."""
    shards = range(self.num_shards)
    paths = [_sizes_path(self._folder, self._split, shard) for shard in shards]
    starts = [self.shard_range(shard)[0] for shard in shards]
    return TokenSizes.read(zip(starts, paths), self.chunk_len)

  @functools.cached_property
  def _first_document(self) -> np.ndarray:
    """Number of the first document of each shard, [shards] int32."""
    tables = [_table_path(self._folder, self._split, s) for s in range(self.num_shards)]
    counts = [corpus.num_rows(path) for path in tables]
    return np.cumsum([0, *counts[:-1]], dtype=np.int32)

  @functools.cached_property
  def _tables(self) -> list[pa.Table]:
    shards = range(self.num_shards)
    files = [_table_path(self._folder, self._split, shard) for shard in shards]
    return [pq.read_table(io.BytesIO(file.read_bytes())) for file in files]


def chunk_text(store: ChunkStore, vocab: vocabulary.Vocabulary, chunk: int) -> str:
  """The text of one chunk."""
  return vocab.decode(store.tokens[chunk][: int(store.length[chunk])])


def _sizes_path(folder: Path, split: str, shard: int) -> Path:
  return folder / f'{split}-bytes-{shard:05d}.parquet'


def _table_path(folder: Path, split: str, shard: int) -> Path:
  return folder / f'{split}-documents-{shard:05d}.parquet'

"""Stage: documents of all sources, without duplicates, split into a train and a held-out part."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from instructretro_jax.pipeline import manifest, paths, stage
from instructretro_jax.pipeline.atomic import atomic
from instructretro_jax.pipeline.notes import note
from instructretro_jax.pipeline.progress import Bar
from instructretro_jax.text.documents import MAX_DOCUMENT_BYTES, Document, Problems, Source
from instructretro_jax.text.normalised import normalise_space
from instructretro_jax.text.spool import Spool

SPLITS = ('train', 'heldout')
_SCHEMA = pa.schema([(name, pa.large_string()) for name in ('id', 'source', 'group', 'text')])
_BATCH_ROWS = 256  # documents in a row group


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus(stage.Stage):
  """Splits the documents of all sources into a train and a held-out part, without duplicates.

  Writes `train-00000.parquet`, ... and `heldout-00000.parquet`, ..., as many shards of each.

  What is written depends on the documents and not on the order in which the sources give them:
  the hash of the group says on which side a document is, the hash of the id in which shard and
  where in it. Of documents whose texts differ in white space alone the first by hash is kept.
  Documents that share an id but not the text have a hash of the text added to the id. The sources
  are read once: the stage does not notice a file of the user's that changes afterwards.
  """

  name: str = 'corpus'
  sources: tuple[Source, ...]
  heldout_fraction: float  # of the groups, between 0 and 1
  seed: int = 0
  num_shards: int = 4  # one shard of both splits is held in memory at a time
  on_bad_input: str = 'skip'  # or 'refuse'
  max_document_bytes: int = MAX_DOCUMENT_BYTES

  def __post_init__(self):
    if not self.sources:
      raise ValueError('a corpus needs at least one source')
    if not 0 < self.heldout_fraction < 1:
      raise ValueError(f'heldout_fraction={self.heldout_fraction} is not between 0 and 1')
    if self.num_shards < 1:
      raise ValueError(f'num_shards={self.num_shards}: give at least 1')
    self._problems()

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    """Reads every source once and returns counts; begins anew after a kill.

    Raises StageError if no document is left for one of the two splits.
    """
    del root
    problems = self._problems()
    kept = _Kept()
    with paths.scratch(folder / 'spool') as spool:
      num_read, first_ranks = self._spool_by_shard(Spool(spool, self.num_shards), problems)
      if skipped := problems.summary(num_read, 'documents'):
        note(f'{self.name}: {skipped}, see manifest')
      id_counts = collections.Counter(_id_hash(rank) for rank in first_ranks.values())
      for shard in range(self.num_shards):
        parts: dict[str, list[Document]] = {split: [] for split in SPLITS}
        for rank, text_hash, document in self._distinct(spool / str(shard), first_ranks):
          if id_counts[_id_hash(rank)] > 1:
            document = dataclasses.replace(document, id=f'{document.id}#{text_hash.hex()[:12]}')
            kept.num_renamed += 1
          split = self._split_of(document)
          parts[split].append(document)
          kept.add(split, document)
        for split, documents in parts.items():
          _write_shard(_shard_path(folder, split, shard), documents)
    try:
      manifest.check_count(folder, 'documents', kept.num_documents, len(first_ranks))
      kept.check_splits(num_read, self.heldout_fraction, problems)
    except manifest.StageError:
      for path in folder.glob('*.parquet'):  # so that other fields may be tried
        path.unlink()
      raise
    return {
      **kept.to_json(),
      'duplicates': num_read - len(first_ranks),
      'problems': problems.to_json(),
    }

  def _problems(self) -> Problems:
    return Problems(self.on_bad_input, max_document_bytes=self.max_document_bytes)

  def _spool_by_shard(self, spool: Spool, problems: Problems) -> tuple[int, dict[bytes, bytes]]:
    """Writes all documents to one file a shard; returns their number, and the first rank of a text.

    What stays in memory is the two hashes of each text, about 200 bytes.
    """
    num_read, first_ranks = 0, {}
    documents = itertools.chain.from_iterable(source.read(problems) for source in self.sources)
    for document in Bar(documents, desc=self.name, unit=' documents'):
      place = f'document {ascii(document.id)} of {ascii(document.source)}'
      fields = dataclasses.astuple(document)
      if not all(problems.accepts_unicode(text, place) for text in fields):
        continue
      num_read += 1
      rank, text_hash = self._rank(document), _text_hash(document)
      first_ranks[text_hash] = min(rank, first_ranks.get(text_hash, rank))
      # The last bytes of the hash of the id, since the first ones order the shard.
      shard = int.from_bytes(_id_hash(rank)[-8:], 'big') % self.num_shards
      spool.add(shard, document)
    spool.flush()
    return num_read, first_ranks

  def _distinct(
    self, path: Path, first_ranks: Mapping[bytes, bytes]
  ) -> list[tuple[bytes, bytes, Document]]:
    """(rank, hash of the text, document) of a spooled shard, in order, each text once."""
    found: dict[tuple[bytes, bytes], Document] = {}
    for document in Spool.read(path):
      rank, text_hash = self._rank(document), _text_hash(document)
      if first_ranks[text_hash] == rank:
        other = found.get((rank, text_hash), document)  # the same id twice, spaced differently
        found[rank, text_hash] = min(document, other, key=lambda one: one.text)
    return [(*key, found[key]) for key in sorted(found)]

  def _rank(self, document: Document) -> bytes:
    """Orders documents: by the hash of the id and, where ids repeat, of source and group."""
    own = _sha256(f'{self.seed}/order/{document.id}')
    return own + _sha256(json.dumps([document.source, document.group]))

  def _split_of(self, document: Document) -> str:
    hashed = _sha256(f'{self.seed}/split/{document.group}')
    is_heldout = int.from_bytes(hashed[:8], 'big') < self.heldout_fraction * 2**64
    return 'heldout' if is_heldout else 'train'


def num_shards(folder: Path) -> int:
  """Number of shards that each split of a corpus has. Raises StageError if it has none."""
  found = len(list(folder.glob('train-*.parquet')))
  if not found:
    raise manifest.StageError(f'{folder} holds no corpus: run the stage that writes it')
  return found


def num_documents(folder: Path, split: str) -> int:
  """Documents of a split, as its files say."""
  shards = range(num_shards(folder))
  return sum(num_rows(_shard_path(folder, split, shard)) for shard in shards)


def num_rows(path: Path) -> int:
  """Rows of a Parquet file."""
  with path.open('rb') as file:
    return pq.read_metadata(file).num_rows


def read_documents(folder: Path, split: str, shard: int) -> Iterator[Document]:
  """Yields the documents of one shard in order, a few at a time in memory; a shard may be empty.

  Raises StageError if there is no such split or shard.
  """
  path = _shard_path(folder, split, shard)
  if not path.exists():
    raise manifest.StageError(
      f'{path} does not exist: splits are {SPLITS}, shards 0 to {num_shards(folder) - 1}'
    )
  with path.open('rb') as opened, pq.ParquetFile(opened) as file:
    for batch in file.iter_batches(_BATCH_ROWS):
      for row in batch.to_pylist():
        yield Document(**row)


class _Kept:
  """Counts of the documents that are written."""

  def __init__(self):
    self.num_renamed = 0
    self._counts = {split: collections.Counter() for split in SPLITS}  # documents and bytes
    self._by_source = collections.defaultdict(collections.Counter)

  def add(self, split: str, document: Document) -> None:
    num_bytes = len(document.text.encode())
    self._counts[split].update(documents=1, bytes=num_bytes)
    self._by_source[document.source].update({f'{split}_documents': 1, f'{split}_bytes': num_bytes})

  @property
  def num_documents(self) -> int:
    return sum(counts['documents'] for counts in self._counts.values())

  def check_splits(self, num_read: int, heldout_fraction: float, problems: Problems) -> None:
    """Raises StageError if one split has no document."""
    sizes = {split: self._counts[split]['documents'] for split in SPLITS}
    if not num_read:
      raise manifest.StageError(
        f'the sources gave no document; bad input: {json.dumps(problems.to_json())}'
      )
    for split, size in sizes.items():
      if not size:
        raise manifest.StageError(
          f'no document is in the {split} split ({sizes}, heldout_fraction='
          f'{heldout_fraction}): add documents, form smaller groups, or change heldout_fraction '
          'or seed'
        )

  def to_json(self) -> dict[str, Any]:
    return {
      **{split: dict(counts) for split, counts in self._counts.items()},
      'sources': {name: dict(sorted(counts.items())) for name, counts in self._by_source.items()},
      'renamed_ids': self.num_renamed,
    }


def _sha256(text: str) -> bytes:
  return hashlib.sha256(text.encode()).digest()


def _text_hash(document: Document) -> bytes:
  """Equal for texts that differ in white space alone."""
  return _sha256(normalise_space(document.text))


def _id_hash(rank: bytes) -> bytes:
  return rank[:32]


def _shard_path(folder: Path, split: str, shard: int) -> Path:
  return folder / f'{split}-{shard:05d}.parquet'


def _write_shard(path: Path, documents: Sequence[Document]) -> None:
  """Writes a file that appears whole or not at all."""
  with atomic(path) as partial, pq.ParquetWriter(partial, _SCHEMA, compression='zstd') as writer:
    for start in range(0, len(documents), _BATCH_ROWS):
      rows = [dataclasses.asdict(document) for document in documents[start : start + _BATCH_ROWS]]
      writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))

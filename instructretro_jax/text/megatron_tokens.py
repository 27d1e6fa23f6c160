"""Documents of Megatron's token files: NAME.idx says where in NAME.bin each of them is."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
from pathlib import Path
import struct
from typing import NamedTuple

import numpy as np

from instructretro_jax.pipeline.local_copy import local
from instructretro_jax.pipeline.paths import to_path
from instructretro_jax.text import vocabulary
from instructretro_jax.text.documents import Document, Problems
from instructretro_jax.text.files import BROKEN, Pattern, named_files, report_broken
from instructretro_jax.text.tokens import Vocabulary

_MAGIC = b'MMIDIDX\x00\x00'
_HEADER = struct.Struct('<QBQQ')  # version, code of the dtype, sequences, entries of documents
_DTYPES = {1: 'u1', 2: 'i1', 3: '<i2', 4: '<i4', 5: '<i8', 8: '<u2'}


class TokenIndex(NamedTuple):
  """What an .idx file says: dtype of the tokens, tokens and first byte of each sequence, and the
  first sequence of each document, with the number of all sequences at the end."""

  dtype: np.dtype
  lengths: np.ndarray
  offsets: np.ndarray
  documents: np.ndarray


@dataclasses.dataclass(frozen=True)
class MegatronTokens:
  """A document of text for each document of tokens, as `tools/preprocess_data.py` wrote them.

  Attributes:
    pattern: of the .idx files; the .bin file stands beside each.
    tokenizer: the `tokenizer.json` or SentencePiece `.model` that made the tokens.
  """

  pattern: Pattern
  tokenizer: str
  source: str = 'megatron'

  def input_files(self) -> tuple[Path, ...]:
    """The tokenizer, which decides what the tokens say."""
    return (to_path(self.tokenizer),)

  def read(self, problems: Problems) -> Iterator[Document]:
    """Yields file by file, a document in memory at a time; control tokens are no text.

    Raises StageError if the pattern matches no file, or there is no such tokenizer.
    """
    vocab = vocabulary.open_file(to_path(self.tokenizer))
    for name, path in named_files(self.pattern, problems):
      try:
        yield from self._documents(name, path, vocab, problems)
      except (*BROKEN, ValueError, struct.error) as error:
        report_broken(path, error, problems)

  def _documents(
    self, name: str, path: Path, vocab: Vocabulary, problems: Problems
  ) -> Iterator[Document]:
    index, tokens_path = read_index(path), path.with_suffix('.bin')
    content = np.zeros(0, np.uint8)
    if tokens_path.stat().st_size:
      content = np.memmap(local(tokens_path), np.uint8, 'r')
    for number, (first, stop) in enumerate(zip(index.documents[:-1], index.documents[1:]), 1):
      place, ids = f'{path}:{number}', []
      num_tokens = int(index.lengths[first:stop].sum(dtype=np.int64))
      if num_tokens > problems.max_document_bytes:
        problems.report_too_long(place, f'the document has {num_tokens} tokens')
        continue
      for sequence in range(first, stop):
        start = int(index.offsets[sequence])
        end = start + int(index.lengths[sequence]) * index.dtype.itemsize
        if start < 0 or end > len(content):
          problems.report('broken_file', place, f'its tokens are not all in {tokens_path}')
          break
        ids += content[start:end].view(index.dtype).tolist()
      else:
        if ids and not 0 <= min(ids) <= max(ids) < vocab.vocab_size:
          found = f'tokens {min(ids)} to {max(ids)}, and the tokenizer has {vocab.vocab_size}'
          problems.report('wrong_tokenizer', place, found)
        elif problems.accepts(text := vocab.decode(ids), place):
          yield Document(f'{name}:{number}', text, self.source)


def read_index(path: Path) -> TokenIndex:
  """Reads an .idx file. Raises ValueError if it is none, or cut short."""
  with path.open('rb') as file:
    if file.read(len(_MAGIC)) != _MAGIC:
      raise ValueError('it does not begin as an index of Megatron does (MMIDIDX)')
    version, code, num_sequences, num_documents = _HEADER.unpack(file.read(_HEADER.size))
    if version != 1 or code not in _DTYPES:
      raise ValueError(f'version {version} and dtype {code} are not read')
    start = file.tell()
  needed = start + 12 * num_sequences + 8 * num_documents
  if needed > path.stat().st_size:
    raise ValueError(f'it says that it has {needed} bytes, and has {path.stat().st_size}')
  content = np.memmap(local(path), np.uint8, 'r')
  parts, at = [], start
  for count, dtype in ((num_sequences, '<i4'), (num_sequences, '<i8'), (num_documents, '<i8')):
    size = count * np.dtype(dtype).itemsize
    parts.append(content[at : at + size].view(dtype))
    at += size
  lengths, offsets, documents = parts
  if len(documents) and (
    documents[0] < 0 or documents[-1] > num_sequences or (np.diff(documents) < 0).any()
  ):
    raise ValueError('its documents are not in order')
  if (lengths < 0).any():
    raise ValueError('a sequence has a negative length')
  return TokenIndex(np.dtype(_DTYPES[code]), lengths, offsets, documents)

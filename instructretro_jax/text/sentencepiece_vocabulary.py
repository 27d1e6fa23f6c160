"""SentencePiece models: those trained here, and those of others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from instructretro_jax.pipeline import foreign
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.pipeline.paths import to_path
from instructretro_jax.text.tokens import Vocabulary

META_SYMBOL = '\u2581'  # stands for a space inside SentencePiece


class SentencePieceVocabulary(Vocabulary):
  """SentencePiece whose round trip is exact: decode(encode(text)) == text for any text.

  SentencePiece reads U+2581 as a space. Here it is spelt by its three byte pieces instead.
  A model that puts a space before a text does so before the first word of a text alone.

  Args:
    path: the file.
    eos_token, end_tokens, start_token: names of pieces; by default the end is that of the model,
      and nothing starts a text.

  Raises StageError if the file is no model, or the end token is none of its pieces.
  """

  def __init__(
    self,
    path: str,
    eos_token: str | None = None,
    end_tokens: Sequence[str] = (),
    start_token: str | None = None,
  ):
    self._tokenizer = _opened(path)
    self.source = path
    self._lead = ''
    if self._tokenizer.Normalize('a').startswith(META_SYMBOL):  # a space before every text
      self._lead = ' '
      self._tokenizer.override_normalizer_spec(add_dummy_prefix=False)
    self._bytes_of_meta = [
      self._tokenizer.PieceToId(f'<0x{byte:02X}>') for byte in META_SYMBOL.encode()
    ]
    self._can_spell = all(map(self._tokenizer.IsByte, self._bytes_of_meta))
    named = self._piece(eos_token) if eos_token else self._tokenizer.eos_id()
    if named is None or named < 0:
      raise StageError(
        f'{path} has no piece {eos_token or "</s>"!r} to end a document with: give one that it has '
        'as eos_token (--eos_token)'
      )
    self._eos_id = named
    ends = [self._piece(name) for name in end_tokens]
    self._end_ids = tuple(dict.fromkeys([named, *(i for i in ends if i is not None)]))
    start = self._piece(start_token) if start_token else None
    self.start_ids = () if start is None else (start,)

  def _piece(self, name: str) -> int | None:
    number = self._tokenizer.PieceToId(name)
    return number if self._tokenizer.IdToPiece(number) == name else None

  @property
  def vocab_size(self) -> int:
    return self._tokenizer.GetPieceSize()

  @property
  def eos_id(self) -> int:
    return self._eos_id

  @property
  def end_ids(self) -> tuple[int, ...]:
    return self._end_ids

  @property
  def unk_id(self) -> int:
    return self._tokenizer.unk_id()

  def spelling(self, token: int) -> str:
    """A piece as the model spells it."""
    return self._tokenizer.IdToPiece(token)

  def control_names(self) -> tuple[str, ...]:
    """The pieces of kind control."""
    ids = filter(self._tokenizer.IsControl, range(self.vocab_size))
    return tuple(map(self._tokenizer.IdToPiece, ids))

  def control_id(self, name: str) -> int | None:
    """The control piece of a name."""
    number = self._piece(name)
    return number if number is not None and self._tokenizer.IsControl(number) else None

  def lead_bytes(self) -> int:
    """1 if the model puts a space before a text."""
    return len(self._lead)

  def _encode(self, text: str, continues: bool) -> list[int]:
    if not continues and text:
      text = self._lead + text
    if not self._can_spell:
      return list(self._tokenizer.EncodeAsIds(text))
    first, *parts = text.split(META_SYMBOL)
    ids = list(self._tokenizer.EncodeAsIds(first))
    for part in parts:
      ids += self._bytes_of_meta
      ids += self._tokenizer.EncodeAsIds(part)
    return ids

  def _decode(self, ids: list[int], continues: bool) -> str:
    if not self._lead:
      return self._tokenizer.DecodeIds(ids)
    text = b''.join(self._bytes(i) for i in ids).decode(errors='replace')
    return text if continues else text.removeprefix(self._lead)

  def _bytes(self, number: int) -> bytes:
    """What a piece stands for inside of a text."""
    if self._tokenizer.IsByte(number):
      return bytes([int(self._tokenizer.IdToPiece(number)[1:-1], 16)])
    if self._tokenizer.IsControl(number) or self._tokenizer.IsUnknown(number):
      return b''
    return self._tokenizer.IdToPiece(number).replace(META_SYMBOL, ' ').encode()

  def token_bytes(self) -> np.ndarray:
    """Exact: by pieces."""
    return np.array([len(self._bytes(i)) for i in range(self.vocab_size)], np.int32)


def spellings(path: Path) -> dict[int, str]:
  """The pieces of a model by id. Raises StageError if the file is none."""
  opened = _opened(str(path))
  return {i: opened.IdToPiece(i) for i in range(opened.GetPieceSize())}


def _opened(path: str) -> sentencepiece.SentencePieceProcessor:
  file = to_path(path)
  foreign.check(file)
  opened = sentencepiece.SentencePieceProcessor()
  try:
    opened.LoadFromSerializedProto(file.read_bytes())
  except (OSError, RuntimeError) as error:
    what = ' '.join(str(error).split())
    raise StageError(f'{path} is no SentencePiece model: {what}') from error
  return opened

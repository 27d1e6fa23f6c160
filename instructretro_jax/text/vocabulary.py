"""Vocabularies: trained on the corpus or given as a file."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import io
import itertools
import json
from pathlib import Path
import shutil
from typing import Any

import numpy as np
import sentencepiece
import tokenizers

from instructretro_jax.pipeline import manifest
from instructretro_jax.pipeline.stage import Stage
from instructretro_jax.text import corpus

SENTENCEPIECE_FILE = 'sentencepiece.model'
HUGGING_FACE_FILE = 'tokenizer.json'
_SETTINGS_FILE = 'vocabulary.json'  # beside a tokenizer.json whose end token is known
_META_SYMBOL = '\u2581'  # stands for a space inside SentencePiece
_MAX_LINE_CHARS = 4000  # SentencePiece drops longer training lines


class Vocabulary(abc.ABC):
  """Tokens of a language by number. Id 0 pads, and what a model writes ends with `eos_id`."""

  pad_id = 0

  @property
  @abc.abstractmethod
  def vocab_size(self) -> int:
    """V: ids are below it."""

  @property
  @abc.abstractmethod
  def eos_id(self) -> int:
    """The token that ends a document."""

  @property
  @abc.abstractmethod
  def unk_id(self) -> int | None:
    """What stands for an id beyond the vocabulary, if there is such a token."""

  @abc.abstractmethod
  def encode(self, text: str) -> list[int]:
    """The tokens of a text, without an end token."""

  def decode(self, ids: Sequence[int]) -> str:
    """The text of tokens up to the first end token."""
    kept = [int(i) for i in ids]
    if self.unk_id is not None:
      kept = [i if i < self.vocab_size else self.unk_id for i in kept]
    if self.eos_id in kept:
      kept = kept[: kept.index(self.eos_id) + 1]
    return self._decode(kept)

  @abc.abstractmethod
  def token_bytes(self) -> np.ndarray:
    """UTF-8 bytes that each token stands for, [V] int32; 0 for control tokens."""

  @abc.abstractmethod
  def _decode(self, ids: list[int]) -> str:
    """The text of tokens that the vocabulary has."""


class SentencePieceVocabulary(Vocabulary):
  """SentencePiece whose round trip is exact: decode(encode(text)) == text for any text.

  SentencePiece reads U+2581 as a space. Here it is spelt by its three byte pieces instead.
  """

  def __init__(self, path: str):
    self._tokenizer = sentencepiece.SentencePieceProcessor()
    self._tokenizer.Load(path)

  @property
  def vocab_size(self) -> int:
    return self._tokenizer.GetPieceSize()

  @property
  def eos_id(self) -> int:
    return self._tokenizer.eos_id()

  @property
  def unk_id(self) -> int:
    return self._tokenizer.unk_id()

  def encode(self, text: str) -> list[int]:
    """The tokens of a text, without an end token."""
    parts = text.split(_META_SYMBOL)
    ids = list(self._tokenizer.EncodeAsIds(parts[0]))
    for part in parts[1:]:
      ids += [self._tokenizer.PieceToId(f'<0x{b:02X}>') for b in _META_SYMBOL.encode()]
      ids += self._tokenizer.EncodeAsIds(part)
    return ids

  def _decode(self, ids: list[int]) -> str:
    return self._tokenizer.DecodeIds(ids)

  def token_bytes(self) -> np.ndarray:
    """Exact: by pieces."""
    sizes = np.zeros(self.vocab_size, np.int32)
    for i in range(self.vocab_size):
      if self._tokenizer.IsByte(i):
        sizes[i] = 1
      elif not (self._tokenizer.IsControl(i) or self._tokenizer.IsUnknown(i)):
        sizes[i] = len(self._tokenizer.IdToPiece(i).replace(_META_SYMBOL, ' ').encode())
    return sizes


class HuggingFaceVocabulary(Vocabulary):
  """A `tokenizer.json` of the Hugging Face tokenizers library.

  Args:
    path: the file.
    eos_token: the token that ends a document; by default the first known one that the file has.

  Raises StageError if the file has no token to end a document with.
  """

  _EOS_TOKENS = ('<|endoftext|>', '</s>', '<|end_of_text|>', '<eos>', '[SEP]')

  unk_id = None

  def __init__(self, path: str, eos_token: str | None = None):
    self._tokenizer = tokenizers.Tokenizer.from_file(path)
    self._tokenizer.no_truncation()  # the file may ask for both
    self._tokenizer.no_padding()
    known = [eos_token] if eos_token else self._EOS_TOKENS
    ids = [self._tokenizer.token_to_id(token) for token in known]
    if not any(i is not None for i in ids):
      raise manifest.StageError(f'{path} has none of the tokens {known} to end a document with')
    self._eos_id = next(i for i in ids if i is not None)

  @property
  def vocab_size(self) -> int:
    return self._tokenizer.get_vocab_size()

  @property
  def eos_id(self) -> int:
    return self._eos_id

  @property
  def eos_token(self) -> str:
    """The token that ends a document, as it is spelt."""
    return self._tokenizer.id_to_token(self._eos_id)

  def encode(self, text: str) -> list[int]:
    """The tokens of a text, without an end token."""
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def _decode(self, ids: list[int]) -> str:
    return self._tokenizer.decode(ids, skip_special_tokens=True)

  def token_bytes(self) -> np.ndarray:
    # of each token decoded alone: exact for whole characters
    """Of each token decoded alone: exact for whole characters."""
    texts = self._tokenizer.decode_batch([[i] for i in range(self.vocab_size)])
    return np.array([len(text.encode()) for text in texts], np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainVocabulary(Stage):
  """Trains a SentencePiece model with byte fallback on the training split."""

  name: str = 'vocabulary'
  corpus: str = 'corpus'
  vocab_size: int
  model_type: str = 'bpe'  # or 'unigram'
  max_bytes: int = 4 << 20  # of text to train on: documents in the corpus's (random) order

  def reads(self) -> tuple[str, ...]:
    """The stages whose folders `build` reads."""
    return (self.corpus,)

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    """Trains the model on the training split."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=self._lines(root / self.corpus),
      model_writer=model,
      vocab_size=self.vocab_size,
      model_type=self.model_type,
      byte_fallback=True,
      split_digits=True,
      normalization_rule_name='identity',
      remove_extra_whitespaces=False,
      add_dummy_prefix=False,
      hard_vocab_limit=False,
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      num_threads=1,  # the same model on every machine
      minloglevel=2,
    )
    manifest.write_bytes(folder / SENTENCEPIECE_FILE, model.getvalue())
    return {'vocab_size': load(folder).vocab_size}

  def _lines(self, folder: Path) -> Iterator[str]:
    left = self.max_bytes
    for shard in range(corpus.num_shards(folder)):
      for document in corpus.read_documents(folder, 'train', shard):
        for line in document.text.splitlines():
          for start in range(0, len(line), _MAX_LINE_CHARS):
            yield line[start : start + _MAX_LINE_CHARS]
        left -= len(document.text.encode())
        if left <= 0:
          return


@dataclasses.dataclass(frozen=True, kw_only=True)
class GivenVocabulary(Stage):
  """Takes a SentencePiece model (`*.model`) or a Hugging Face `tokenizer.json`."""

  name: str = 'vocabulary'
  path: str

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    """Copies the file, and opens it once."""
    source = Path(self.path).expanduser()
    if not source.is_file():
      raise manifest.StageError(f'no vocabulary file at {source}')
    target = HUGGING_FACE_FILE if source.suffix == '.json' else SENTENCEPIECE_FILE
    shutil.copyfile(source, folder / target)
    return {'vocab_size': load(folder).vocab_size}


def write_hugging_face(folder: Path, content: str, eos_token: str | None) -> None:
  """Writes a `tokenizer.json`, and the token that ends a document where it is known."""
  manifest.write_text(folder / HUGGING_FACE_FILE, content)
  if eos_token is not None:
    manifest.write_text(folder / _SETTINGS_FILE, json.dumps({'eos_token': eos_token}))


def load(folder: Path) -> Vocabulary:
  """The vocabulary of a finished stage folder."""
  if (folder / HUGGING_FACE_FILE).exists():
    settings = folder / _SETTINGS_FILE
    known = json.loads(settings.read_text()) if settings.exists() else {}
    return HuggingFaceVocabulary(str(folder / HUGGING_FACE_FILE), **known)
  return SentencePieceVocabulary(str(folder / SENTENCEPIECE_FILE))


def fingerprint(vocabulary: Vocabulary) -> str:
  """Identifies a vocabulary by the ids it gives to every piece."""
  pieces = itertools.chain.from_iterable(
    (vocabulary.decode([i]).encode(), b'\0') for i in range(vocabulary.vocab_size)
  )
  return hashlib.sha256(b''.join(pieces)).hexdigest()

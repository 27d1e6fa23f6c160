"""Stages of vocabularies, trained on the corpus or given as a file, and what they left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import hashlib
import io
import itertools
import json
from pathlib import Path
from typing import Any

import sentencepiece

from instructretro_jax.pipeline import foreign, manifest, paths
from instructretro_jax.pipeline.paths import to_path
from instructretro_jax.pipeline.stage import Stage
from instructretro_jax.text import (
  corpus,
  hugging_face_vocabulary,
  model_names,
  sentencepiece_vocabulary,
)
from instructretro_jax.text.hugging_face_vocabulary import HuggingFaceVocabulary
from instructretro_jax.text.model_names import Names
from instructretro_jax.text.sentencepiece_vocabulary import SentencePieceVocabulary
from instructretro_jax.text.tokens import Vocabulary

SENTENCEPIECE_FILE = 'sentencepiece.model'
HUGGING_FACE_FILE = 'tokenizer.json'
TEMPLATE_FILE = 'chat_template.jinja'
_SETTINGS_FILE = 'vocabulary.json'  # what the files of a model say of its tokens, beside them
_MAX_LINE_CHARS = 4000  # SentencePiece drops longer training lines


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
  """Takes a SentencePiece model (`*.model`) or a Hugging Face `tokenizer.json`.

  What stands beside it (`tokenizer_config.json` and the like) says which tokens begin and end a
  text, and how a model is asked.
  """

  name: str = 'vocabulary'
  path: str

  def input_files(self) -> tuple[Path, ...]:
    """The file, and those beside it that say what its tokens are for."""
    source = to_path(self.path)
    return (source, *model_names.files(source.parent))

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    """Copies the file, and opens it once."""
    source = to_path(self.path)
    if not source.is_file():
      raise manifest.StageError(f'no vocabulary file at {source}')
    names = model_names.read(source.parent, spellings(source).get)
    return {'vocab_size': take(folder, source, names).vocab_size}


def spellings(path: Path) -> dict[int, str]:
  """The tokens of a `tokenizer.json` or a SentencePiece `.model` by id.

  Raises StageError if there is no such file, or it is none.
  """
  reader = hugging_face_vocabulary if path.suffix == '.json' else sentencepiece_vocabulary
  return reader.spellings(path)


def take(
  folder: Path,
  source: Path,
  names: Names,
  eos_token: str | None = None,
  content: bytes | None = None,
  known: Mapping[int, str] | None = None,
) -> Vocabulary:
  """Writes the vocabulary of a file, with those of the names that it has; opens it.

  Args:
    eos_token: ends a document, in place of the one named.
    content, known: a tokenizer.json and its tokens, if the source itself is something else.

  Raises StageError that names the source if that is no vocabulary, or lacks the end token.
  """
  known = spellings(source) if known is None else known
  has = set(known.values())
  if eos_token is not None and eos_token not in has:
    raise manifest.StageError(
      f'{source} has no token {eos_token!r}: give another eos_token (--eos_token)'
    )
  ends = dict.fromkeys(t for t in (eos_token, names.eos_token, *names.end_tokens) if t in has)
  first, *others = ends or [None]
  names = dataclasses.replace(names, eos_token=first, end_tokens=tuple(others))
  is_json = content is not None or source.suffix == '.json'
  file = HUGGING_FACE_FILE if is_json else SENTENCEPIECE_FILE
  return write(folder, file, source.read_bytes() if content is None else content, names, source)


def write(folder: Path, file: str, content: bytes, names: Names, source: Path) -> Vocabulary:
  """Writes a vocabulary file (one of the names above) and what is known of its tokens; opens it.

  Raises StageError that names the source if that is no vocabulary.
  """
  for name in (HUGGING_FACE_FILE, SENTENCEPIECE_FILE, TEMPLATE_FILE, _SETTINGS_FILE):
    paths.remove(folder / name)  # of an attempt that failed
  manifest.write_bytes(folder / file, content)
  settings = dataclasses.asdict(names)
  template = settings.pop('chat_template')
  if settings := {name: value for name, value in settings.items() if value not in (None, ())}:
    manifest.write_text(folder / _SETTINGS_FILE, json.dumps(settings))
  if template is not None:
    manifest.write_text(folder / TEMPLATE_FILE, template)
  try:
    return load(folder)
  except manifest.StageError as error:
    raise manifest.StageError(str(error).replace(str(folder / file), str(source))) from error


def load(folder: Path) -> Vocabulary:
  """The vocabulary of a finished stage folder."""
  known = {}
  if (folder / _SETTINGS_FILE).exists():
    known = foreign.read_json(folder / _SETTINGS_FILE)
  bos_token = known.pop('bos_token', None)
  if (folder / HUGGING_FACE_FILE).exists():
    vocab = HuggingFaceVocabulary(str(folder / HUGGING_FACE_FILE), **known)
  else:
    vocab = SentencePieceVocabulary(str(folder / SENTENCEPIECE_FILE), **known)
  vocab.bos_token = bos_token or ''.join(map(vocab.spelling, vocab.start_ids))
  if (folder / TEMPLATE_FILE).exists():
    vocab.chat_template = (folder / TEMPLATE_FILE).read_text(encoding='utf-8')
  return vocab


def open_file(path: Path) -> Vocabulary:
  """The vocabulary of a `tokenizer.json` or a SentencePiece `.model` by itself.

  Raises StageError if there is no such file, or it is none.
  """
  foreign.check(path)
  kind = HuggingFaceVocabulary if path.suffix == '.json' else SentencePieceVocabulary
  return kind(str(path))


def fingerprint(vocabulary: Vocabulary) -> str:
  """Identifies a vocabulary by the ids it gives to every piece."""
  pieces = itertools.chain.from_iterable(
    (vocabulary.decode([i]).encode(), b'\0') for i in range(vocabulary.vocab_size)
  )
  return hashlib.sha256(b''.join(pieces)).hexdigest()

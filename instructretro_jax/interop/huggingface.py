"""Hugging Face folders (config.json, *.safetensors): open models in, decoders out."""

from __future__ import annotations

from collections.abc import Mapping
import json
from pathlib import Path
import shutil
from typing import Any

from flax import traverse_util
import numpy as np
import safetensors
import safetensors.numpy
import tokenizers

from instructretro_jax.array_types import Params
from instructretro_jax.interop import architectures, tensor_table
from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.pipeline import manifest
from instructretro_jax.pipeline.atomic import atomic
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.train.lazy_params import LazyArray, LazyParams, read_all

CONFIG_FILE = 'config.json'
TENSOR_FILE = 'model.safetensors'
INDEX_FILE = 'model.safetensors.index.json'
TOKENIZER_FILE = 'tokenizer.json'
TOKENIZER_CONFIG_FILE = 'tokenizer_config.json'
_DTYPES = ('F64', 'F32', 'F16', 'BF16')


def load(folder: Path, **retrieval: Any) -> tuple[RetroConfig, Params]:
  """Configuration and decoder parameters of a folder, all in memory; as `load_lazy`."""
  config, lazy = load_lazy(folder, **retrieval)
  return config, read_all(lazy)


def load_lazy(folder: Path, **retrieval: Any) -> tuple[RetroConfig, LazyParams]:
  """Configuration of a folder, and its decoder's parameters to be read one by one.

  GPT-2, Llama, Mistral, Qwen2 and Qwen3, in one file or sharded; any float type, read as float32.

  Args:
    retrieval: fields of the RetroConfig around the decoder (see architectures.with_retrieval).

  Raises StageError: one that names every unsupported setting, or one that lists every missing,
  unknown and wrongly shaped tensor.
  """
  content = read_json(folder / CONFIG_FILE)
  try:
    decoder = architectures.read(content)
  except StageError as error:
    raise StageError(f'{folder / CONFIG_FILE}: {error}') from error
  config = architectures.with_retrieval(decoder, **retrieval)
  return config, tensor_table.read(folder, content['model_type'], config, _open_tensors(folder))


def read_json(path: Path) -> dict[str, Any]:
  """A JSON file. Raises StageError if there is none."""
  if not path.is_file():
    raise StageError(f'{path.parent} has no {path.name}: give the folder of a Hugging Face model')
  try:
    return json.loads(path.read_text())
  except json.JSONDecodeError as error:
    raise StageError(f'{path} is no JSON: {error}') from error


def _open_tensors(folder: Path) -> dict[str, LazyArray]:
  """All tensors of a folder by plain name."""
  if (folder / INDEX_FILE).exists():
    files = sorted(set(read_json(folder / INDEX_FILE)['weight_map'].values()))
  else:
    files = [TENSOR_FILE]
  absent = [name for name in files if not (folder / name).exists()]
  if absent:
    raise StageError(
      f'{folder} has no {", ".join(absent)}: only safetensors are read, so let transformers save '
      'the model anew if it has another format'
    )
  found, wrong = {}, []
  for name in files:
    try:
      file = safetensors.safe_open(folder / name, framework='numpy')
    except safetensors.SafetensorError as error:
      raise StageError(f'{folder / name} is damaged: {error}') from error
    for key in file.keys():  # noqa: SIM118 (no mapping)
      part = file.get_slice(key)
      if part.get_dtype() not in _DTYPES:
        wrong.append(f'{key} of {name} is {part.get_dtype()}, expected one of {", ".join(_DTYPES)}')
      read = lambda file=file, key=key: file.get_tensor(key).astype(np.float32)
      array = LazyArray(tuple(part.get_shape()), np.dtype(np.float32), read)
      found[tensor_table.plain_name(key)] = array
  if wrong:
    raise StageError(f'{folder}: ' + '\n'.join(wrong))
  return found


def eos_token(folder: Path) -> str | None:
  """The token that ends a text, as the folder's files name it; None if none does."""
  for name in (TOKENIZER_CONFIG_FILE, CONFIG_FILE, 'generation_config.json'):
    content = read_json(folder / name) if (folder / name).exists() else {}
    token = content.get('eos_token')
    if token is not None:
      return token['content'] if isinstance(token, dict) else token
    token_id = content.get('eos_token_id')
    if token_id is not None:
      first = token_id[0] if isinstance(token_id, list) else token_id
      return _token(folder, first)
  return None


def _token(folder: Path, token_id: int) -> str | None:
  content = read_json(folder / TOKENIZER_FILE)
  added = {token['id']: token['content'] for token in content.get('added_tokens') or []}
  if token_id in added:
    return added[token_id]
  vocab = content['model']['vocab']
  pairs = vocab.items() if isinstance(vocab, dict) else ((t[0], n) for n, t in enumerate(vocab))
  return next((token for token, n in pairs if n == token_id), None)


def save(
  config: RetroConfig,
  params: Params | LazyParams,
  folder: Path,
  tokenizer: Path | None = None,
  eos_token: str | None = None,
  max_shard_bytes: int = 5 << 30,
) -> None:
  """Writes the decoder alone (encoder and cross-attention are left out), float32.

  Args:
    params: nested arrays, or `LazyParams`; a shard is in memory only while it is written.
    tokenizer: a tokenizer.json to go with it.
    eos_token: of the tokenizer, ends a text.

  Raises StageError, before it writes, if no architecture expresses the decoder, if parameters are
  missing, or if the folder is there already.
  """
  if folder.exists():
    raise StageError(f'{folder} is there already: choose another --out')
  content = architectures.write(config.decoder)
  content |= {'bos_token_id': None, 'eos_token_id': None}
  if tokenizer is not None and eos_token is not None:
    content['eos_token_id'] = tokenizers.Tokenizer.from_file(str(tokenizer)).token_to_id(eos_token)
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
    prefix = 'transformer.' if family == 'gpt2' else 'model.'
    weight_map = {}
    for file, shard in zip(files, shards):
      tensors = {}
      for row in shard:
        name = row.theirs if row.theirs.startswith('lm_head') else prefix + row.theirs
        arrays = {path: _folded(config.decoder, path, flat[path]) for path in row.ours}
        tensors[name] = tensor_table.to_theirs(row, arrays)
        weight_map[name] = file
      safetensors.numpy.save_file(tensors, partial / file, metadata={'format': 'pt'})
    if len(files) > 1:
      index = {'metadata': {}, 'weight_map': weight_map}
      manifest.write_text(partial / INDEX_FILE, json.dumps(index, indent=1))
    manifest.write_text(partial / CONFIG_FILE, json.dumps(content, indent=1))
    if tokenizer is not None:
      shutil.copyfile(tokenizer, partial / TOKENIZER_FILE)
      settings = {'tokenizer_class': 'PreTrainedTokenizerFast', 'eos_token': eos_token}
      manifest.write_text(partial / TOKENIZER_CONFIG_FILE, json.dumps(settings))


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


def _folded(decoder: DecoderConfig, path: str, x: np.ndarray | LazyArray) -> np.ndarray:
  """A parameter as the written architecture has it: LayerNorm-1p and embedding scale folded in."""
  array = np.asarray(x.read() if isinstance(x, LazyArray) else x, np.float32)
  if decoder.norm == 'layernorm_1p' and path.endswith('norm/scale'):
    return array + 1
  if path == 'embedding/table' and decoder.embedding_scale != 1:
    return array * np.float32(decoder.embedding_scale)
  return array

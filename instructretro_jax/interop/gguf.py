"""GGUF files of the Llama architecture: weights, dequantised one by one, and the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
import functools
from pathlib import Path
import re
from typing import Any

import gguf
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from instructretro_jax.array_types import Params
from instructretro_jax.interop import architectures, tensor_table
from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.train.lazy_params import LazyArray, LazyParams, read_all

_NAMES = {
  'token_embd': 'embed_tokens',
  'output_norm': 'norm',
  'output': 'lm_head',
  'attn_norm': 'input_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'ffn_norm': 'post_attention_layernorm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}
_TENSOR = re.compile(r'(?:blk\.(?P<layer>\d+)\.)?(?P<module>\w+)\.weight')
_CONTROL, _USER_DEFINED = 3, 4  # token types
_PRE_TOKENIZERS = {
  'smollm': lambda: [pre_tokenizers.Digits(individual_digits=True), _byte_level()],
  'gpt-2': lambda: [_byte_level()],
}


def _byte_level() -> pre_tokenizers.PreTokenizer:
  return pre_tokenizers.ByteLevel(add_prefix_space=False)


class GgufFile:
  """An open file. Raises StageError if it is none, or of another architecture than Llama."""

  def __init__(self, path: Path):
    self.path = path
    try:
      self._reader = gguf.GGUFReader(path)
    except (ValueError, OSError) as error:
      raise StageError(f'{path} is no GGUF file: {error}') from error
    architecture = self.get('general.architecture')
    if architecture != 'llama':
      raise StageError(f'{path}: general.architecture is {architecture!r}, supported is llama')

  def get(self, key: str, default: Any = None) -> Any:
    """A value of the metadata."""
    field = self._reader.fields.get(key)
    return default if field is None else field.contents()

  @property
  def decoder(self) -> DecoderConfig:
    """Raises StageError that names every setting this model does not have."""
    wrong = []
    names = (
      'vocab_size', 'embedding_length', 'block_count', 'feed_forward_length',
      'attention.head_count', 'attention.layer_norm_rms_epsilon', 'context_length',
    )  # fmt: skip
    found = {name: self.get(f'llama.{name}') for name in names}
    wrong += [f'llama.{name} is missing' for name, value in found.items() if value is None]
    scaling = self.get('llama.rope.scaling.type', 'none')
    if scaling != 'none':
      wrong.append(f'llama.rope.scaling.type is {scaling!r}, supported is none')
    if self.get('llama.expert_count', 0):
      wrong.append('llama.expert_count: mixtures of experts are not supported')
    if wrong:
      raise StageError(f'{self.path}: ' + '; '.join(wrong))
    width, heads = found['embedding_length'], found['attention.head_count']
    kv_heads = self.get('llama.attention.head_count_kv', heads)
    head_width = self.get('llama.attention.key_length', width // heads)
    rotary_width = self.get('llama.rope.dimension_count', head_width)
    if rotary_width != head_width:
      raise StageError(f'{self.path}: rope.dimension_count {rotary_width} of {head_width} channels')
    return DecoderConfig(
      vocab_size=found['vocab_size'],
      num_layers=found['block_count'],
      width=width,
      num_heads=heads,
      ff_width=found['feed_forward_length'],
      num_kv_heads=None if kv_heads == heads else kv_heads,
      width_per_head=None if head_width * heads == width else head_width,
      activation='swiglu',
      norm='rmsnorm',
      norm_eps=float(f'{found["attention.layer_norm_rms_epsilon"]:.7g}'),  # was float32
      rotary_base=float(self.get('llama.rope.freq_base', 10_000.0)),
      max_len=found['context_length'],
      tie_embeddings='output.weight' not in {t.name for t in self._reader.tensors},
    )

  def tensors(self, decoder: DecoderConfig) -> dict[str, LazyArray]:
    """Dequantised tensors under the names and in the order that Hugging Face's Llama has."""
    found = {}
    for tensor in self._reader.tensors:
      match = _TENSOR.fullmatch(tensor.name)
      module = _NAMES.get(match['module']) if match else None
      name = tensor.name  # unknown ones are reported under their own
      if module:
        layer = f'layers.{match["layer"]}.' if match['layer'] else ''
        name = f'{layer}{module}.weight'
      heads = {'attn_q': decoder.num_heads, 'attn_k': decoder.kv_heads}
      turned = heads.get(match['module']) if match else None
      shape = tuple(int(n) for n in reversed(tensor.shape))
      read = functools.partial(_dequantised, tensor, shape, turned)
      found[name] = LazyArray(shape, np.dtype(np.float32), read)
    return found

  def tokenizer(self) -> tokenizers.Tokenizer:
    """The byte-level BPE of the metadata. Raises StageError for another kind."""
    kind, pre = self.get('tokenizer.ggml.model'), self.get('tokenizer.ggml.pre')
    if kind != 'gpt2' or pre not in _PRE_TOKENIZERS:
      raise StageError(
        f'{self.path}: tokenizer {kind!r} with pre-tokenizer {pre!r}; supported are gpt2 with '
        f'{" or ".join(_PRE_TOKENIZERS)}. Give a tokenizer.json'
      )
    tokens = self.get('tokenizer.ggml.tokens')
    merges = [tuple(merge.split(' ')) for merge in self.get('tokenizer.ggml.merges')]
    tokenizer = tokenizers.Tokenizer(models.BPE({t: n for n, t in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_PRE_TOKENIZERS[pre]())
    tokenizer.decoder = decoders.ByteLevel()
    special = [
      tokenizers.AddedToken(token, special=True, normalized=False)
      for token, kind in zip(tokens, self.get('tokenizer.ggml.token_type'))
      if kind in (_CONTROL, _USER_DEFINED)
    ]
    tokenizer.add_special_tokens(special)
    return tokenizer

  def eos_token(self) -> str | None:
    """The token that ends a text, or None."""
    token_id = self.get('tokenizer.ggml.eos_token_id')
    return None if token_id is None else self.get('tokenizer.ggml.tokens')[token_id]


def _dequantised(tensor: Any, shape: tuple[int, ...], turned_heads: int | None) -> np.ndarray:
  array = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
  return array if turned_heads is None else half_split(array, turned_heads)


def half_split(weight: np.ndarray, num_heads: int) -> np.ndarray:
  """Undoes the converter's permutation of query and key rows, [H * A, D].

  The converter pairs the rotating channels 2i and 2i + 1; ordinary weights pair i and i + A/2.
  """
  paired = weight.reshape(num_heads, -1, 2, weight.shape[1])
  return paired.swapaxes(1, 2).reshape(weight.shape)


def load(path: Path, **retrieval: Any) -> tuple[RetroConfig, Params]:
  """Configuration and decoder parameters of a file, all in memory; as `load_lazy`."""
  config, lazy = load_lazy(path, **retrieval)
  return config, read_all(lazy)


def load_lazy(path: Path, **retrieval: Any) -> tuple[RetroConfig, LazyParams]:
  """Configuration of a file, and its decoder's parameters, dequantised one by one when read.

  Args:
    retrieval: fields of the RetroConfig around the decoder (see architectures.with_retrieval).

  Raises StageError that names every unsupported setting, or lists every tensor that does not fit.
  """
  file = GgufFile(path)
  config = architectures.with_retrieval(file.decoder, **retrieval)
  tensors: Mapping[str, LazyArray] = file.tensors(config.decoder)
  return config, tensor_table.read(path, 'llama', config, tensors)

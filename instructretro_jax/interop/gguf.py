"""GGUF files of the Llama architecture: weights, dequantised one by one, and the tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import functools
from pathlib import Path
import re
from typing import Any

import gguf
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from instructretro_jax.array_types import Params
from instructretro_jax.interop import architectures, gguf_rope, tensor_table
from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.model.rotary_scaling import RotaryScaling
from instructretro_jax.pipeline import foreign
from instructretro_jax.pipeline.local_copy import local
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.text.model_names import Names
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
_PART = re.compile(r'(.+)-(\d{5})-of-(\d{5})\.gguf')
_CONTROL, _USER_DEFINED = 3, 4  # token types
_PRE_TOKENIZERS = {
  'smollm': lambda: [pre_tokenizers.Digits(individual_digits=True), _byte_level()],
  'gpt-2': lambda: [_byte_level()],
}


def _byte_level() -> pre_tokenizers.PreTokenizer:
  return pre_tokenizers.ByteLevel(add_prefix_space=False)


# below 'llama.': what is read, and what changes nothing as long as it has one of these values
_READ = frozenset(
  {
    'vocab_size',
    'embedding_length',
    'block_count',
    'feed_forward_length',
    'context_length',
    'attention.head_count',
    'attention.head_count_kv',
    'attention.key_length',
    'attention.layer_norm_rms_epsilon',
    'rope.freq_base',
    'rope.dimension_count',
    'rope.scaling.factor',
    'rope.scaling.original_context_length',
  }
)
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
  'rope.scaling.type': ('none', 'linear'),
  'rope.scaling.finetuned': (False, True),
  'rope.scale_linear': (1.0, 0.0),
  'attention.sliding_window': (0,),
  'attention.scale': (0.0,),
  'attention.causal': (True,),
  'attention.clamp_kqv': (0.0,),
  'logit_scale': (1.0, 0.0),
  'expert_count': (0,),
  'expert_used_count': (0,),
  'use_parallel_residual': (False,),
  'tensor_data_layout': ('Meta AI original pth',),
}


class GgufFile:
  """An open file, with the parts that go with it: any of them may be given.

  Raises StageError if it is none, a part is missing, or it is of another architecture than Llama.
  """

  def __init__(self, path: Path):
    self.path = path
    readers = [_opened(part) for part in _parts_of(path, _opened(path))]
    self._reader = readers[0]  # the first part has the settings
    self._tensors = [tensor for reader in readers for tensor in reader.tensors]
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
    wrong += self._unknown_settings()
    if wrong:
      raise StageError(f'{self.path}: ' + '; '.join(wrong))
    width, heads = found['embedding_length'], found['attention.head_count']
    kv_heads = self.get('llama.attention.head_count_kv', heads)
    head_width = self.get('llama.attention.key_length', width // heads)
    rotary_width = self.get('llama.rope.dimension_count', head_width)
    if rotary_width != head_width:
      raise StageError(f'{self.path}: rope.dimension_count {rotary_width} of {head_width} channels')
    base = float(self.get('llama.rope.freq_base', 10_000.0))
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
      rotary_base=base,
      rotary_scaling=self._rotary_scaling(base),
      max_len=found['context_length'],
      tie_embeddings='output.weight' not in {t.name for t in self._tensors},
    )

  def _rotary_scaling(self, base: float) -> RotaryScaling | None:
    found = [t for t in self._tensors if t.name == gguf_rope.DIVISORS]
    divisors = gguf.dequantize(found[0].data, found[0].tensor_type).ravel() if found else None
    get = lambda name, default: self.get(f'llama.rope.scaling.{name}', default)
    length = int(get('original_context_length', 8192))
    try:
      return gguf_rope.scaling(get('type', 'linear'), get('factor', 0), divisors, base, length)
    except ValueError as error:
      raise StageError(f'{self.path}: {error}') from error

  def _unknown_settings(self) -> Iterator[str]:
    """Settings of the architecture that are not read, unless they are known to change nothing."""
    for key in self._reader.fields:
      name = key.removeprefix('llama.')
      if name == key or name in _READ:
        continue
      value, neutral = self.get(key), _NEUTRAL.get(name)
      if name == 'attention.value_length':
        width, heads = (
          self.get(f'llama.{n}') for n in ('embedding_length', 'attention.head_count')
        )
        head_width = width // heads if width and heads else value
        neutral = (self.get('llama.attention.key_length', head_width),)
      if neutral is None:
        yield f'{key} is {value!r}, which is not known here and may change what the model computes'
      elif value not in neutral:
        yield f'{key} is {value!r}, supported is {neutral[0]!r}'

  def tensors(self, decoder: DecoderConfig) -> dict[str, LazyArray]:
    """Dequantised tensors under the names and in the order that Hugging Face's Llama has."""
    found = {}
    for tensor in self._tensors:
      if tensor.name == gguf_rope.DIVISORS:
        continue  # no weight
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
    kinds = self.get('tokenizer.ggml.token_type')
    of_kind = lambda wanted, special: [
      tokenizers.AddedToken(token, special=special, normalized=False)
      for token, kind in zip(tokens, kinds)
      if kind == wanted
    ]
    tokenizer.add_special_tokens(of_kind(_CONTROL, True))
    tokenizer.add_tokens(of_kind(_USER_DEFINED, False))  # pieces of text
    return tokenizer

  def spellings(self) -> dict[int, str]:
    """The tokens by id."""
    return dict(enumerate(self.get('tokenizer.ggml.tokens') or ()))

  def names(self) -> Names:
    """What the metadata says of start and end tokens, and the chat template."""
    tokens = self.get('tokenizer.ggml.tokens')
    kinds = ('eos', 'eot', 'eom')
    ids = [self.get(f'tokenizer.ggml.{kind}_token_id') for kind in kinds]
    ends = dict.fromkeys(tokens[i] for i in ids if i is not None)
    bos = self.get('tokenizer.ggml.bos_token_id')
    bos_token = None if bos is None else tokens[bos]
    starts = self.get('tokenizer.ggml.add_bos_token', False) and bos_token is not None
    eos_token, *others = ends or [None]
    return Names(
      eos_token=eos_token,
      end_tokens=tuple(others),
      start_token=bos_token if starts else '',
      bos_token=bos_token,
      chat_template=self.get('tokenizer.chat_template'),
    )


def _opened(path: Path) -> gguf.GGUFReader:
  foreign.check(path)
  with path.open('rb') as file:
    if file.read(4) != b'GGUF':
      raise StageError(f'{path} is no GGUF file: it does not begin with GGUF')
  try:
    return gguf.GGUFReader(local(path))
  except Exception as error:  # of many kinds, for numbers that were cut off
    raise StageError(f'{path} is no whole GGUF file: fetch it again ({error})') from error


def _parts_of(path: Path, reader: gguf.GGUFReader) -> list[Path]:
  """The files of a model in parts, in order; a whole file is its only one."""
  field = reader.get_field('split.count')
  count = 1 if field is None else int(field.contents())
  if count < 2:
    return [path]
  match = _PART.fullmatch(path.name)
  if match is None or int(match[3]) != count:
    raise StageError(
      f'{path} is one of {count} parts, and its name does not tell the others: they are called '
      f'NAME-00001-of-{count:05d}.gguf and so on'
    )
  names = [f'{match[1]}-{n + 1:05d}-of-{count:05d}.gguf' for n in range(count)]
  if absent := [name for name in names if not (path.parent / name).exists()]:
    raise StageError(f'{path} is one of {count} parts, without {foreign.shorten(absent)}')
  return [path.parent / name for name in names]


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

"""Published architectures: the config.json of a Hugging Face model and our decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructretro_jax.interop import rope_settings
from instructretro_jax.interop.hugging_face_settings import unknown
from instructretro_jax.model.config import DecoderConfig, RetroConfig, reference_retro_layers
from instructretro_jax.pipeline.manifest import StageError

FAMILIES = ('gpt2', 'llama', 'mistral', 'qwen2', 'qwen3')
_CLASSES = {  # of transformers, for what we write
  'gpt2': 'GPT2LMHeadModel',
  'llama': 'LlamaForCausalLM',
  'mistral': 'MistralForCausalLM',
  'qwen2': 'Qwen2ForCausalLM',
  'qwen3': 'Qwen3ForCausalLM',
}

_GPT2_ACTIVATIONS = {'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh', 'gelu': 'gelu'}
_LLAMA_ACTIVATIONS = {'silu': 'swiglu', 'gelu_pytorch_tanh': 'geglu'}
# settings that change the numbers, with the only value this model has
_FIXED: Mapping[str, Mapping[str, Any]] = {
  'gpt2': {
    'scale_attn_weights': True,
    'scale_attn_by_inverse_layer_idx': False,
    'add_cross_attention': False,
  },
  'llama': {},
  'mistral': {},
  'qwen2': {},
  'qwen3': {'attention_bias': False},
}


def read(config: Mapping[str, Any]) -> DecoderConfig:
  """The decoder that a config.json describes; what it leaves out has transformers' default.

  Raises StageError that names every setting this model does not have.
  """
  family = config.get('model_type')
  if family not in FAMILIES:
    raise StageError(f'model_type is {family!r}; known are {", ".join(FAMILIES)}')
  fixed = {**_FIXED[family], 'quantization_config': None}
  wrong = [
    f'{name} is {config[name]!r}, supported is {value!r}'
    for name, value in fixed.items()
    if config.get(name, value) != value
  ]
  wrong += unknown(config, family)
  fields = (_gpt2 if family == 'gpt2' else _llama)(config, wrong)
  if wrong:
    raise StageError(f'{family}: ' + '; '.join(wrong))
  try:
    return DecoderConfig(**fields)
  except ValueError as error:
    raise StageError(f'{family}: {error}') from error


def _required(config: Mapping[str, Any], names: tuple[str, ...], wrong: list[str]) -> list[int]:
  wrong += [f'{name} is missing' for name in names if config.get(name) is None]
  return [config.get(name) or 0 for name in names]


def _choose(name: str, value: str, known: Mapping[str, str], wrong: list[str]) -> str:
  if value not in known:
    wrong.append(f'{name} is {value!r}, supported are {", ".join(known)}')
  return known.get(value, '')


def _gpt2(config: Mapping[str, Any], wrong: list[str]) -> dict[str, Any]:
  names = ('vocab_size', 'n_positions', 'n_embd', 'n_layer', 'n_head')
  vocab_size, max_len, width, num_layers, num_heads = _required(config, names, wrong)
  act = config.get('activation_function', 'gelu_new')
  return {
    'vocab_size': vocab_size,
    'num_layers': num_layers,
    'width': width,
    'num_heads': num_heads,
    'ff_width': config.get('n_inner') or 4 * width,
    'activation': _choose('activation_function', act, _GPT2_ACTIVATIONS, wrong),
    'norm': 'layernorm',
    'norm_eps': config.get('layer_norm_epsilon', 1e-5),
    'positions': 'learned',
    'max_len': max_len,
    'use_bias': True,
    'tie_embeddings': config.get('tie_word_embeddings', True),
  }


def _llama(config: Mapping[str, Any], wrong: list[str]) -> dict[str, Any]:
  family = config['model_type']
  names = ('vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads')
  vocab_size, width, num_layers, num_heads = _required(config, names, wrong)
  (ff_width,) = _required(config, ('intermediate_size',), wrong)
  kv_heads = config.get('num_key_value_heads')
  if kv_heads is None and family != 'llama':  # their defaults differ from family to family
    wrong.append('num_key_value_heads is missing')
  max_len = config.get('max_position_embeddings') or (131_072 if family == 'mistral' else 2048)
  head_width = config.get('head_dim', 128 if family == 'qwen3' else None)
  biases = bool(config.get('attention_bias')), bool(config.get('mlp_bias'))
  if family == 'llama' and len(set(biases)) > 1:
    wrong.append(f'attention_bias and mlp_bias are {biases}, supported where equal')
  window = _window(config, family)
  if window is not None and window < max_len:
    wrong.append(
      f'sliding_window is {window}, shorter than max_position_embeddings {max_len}: only attention '
      'to all earlier tokens is supported'
    )
  act = config.get('hidden_act', 'silu')
  rope = rope_settings.parameters(config)
  if rope.get('partial_rotary_factor', config.get('partial_rotary_factor', 1)) != 1:
    wrong.append('partial_rotary_factor is not 1')
  return {
    'vocab_size': vocab_size,
    'num_layers': num_layers,
    'width': width,
    'num_heads': num_heads,
    'ff_width': ff_width,
    'num_kv_heads': None if kv_heads == num_heads else kv_heads,
    'width_per_head': None if head_width is None or head_width * num_heads == width else head_width,
    'activation': _choose('hidden_act', act, _LLAMA_ACTIVATIONS, wrong),
    'norm': 'rmsnorm',
    'norm_eps': config.get('rms_norm_eps', 1e-6),
    'positions': 'rotary',
    'rotary_base': rope_settings.base(config),
    'rotary_scaling': rope_settings.scaling(config, max_len, wrong),
    'max_len': max_len,
    'attention_window': window,
    'use_bias': family == 'llama' and all(biases),
    'qkv_bias': family == 'qwen2',
    'qk_norm': family == 'qwen3',
    'tie_embeddings': config.get('tie_word_embeddings', False),
  }


def _window(config: Mapping[str, Any], family: str) -> int | None:
  """How many tokens a token attends to, itself included; None: all before it."""
  has_window = (
    family == 'mistral'
    or config.get('use_sliding_window')
    or 'sliding_attention' in (config.get('layer_types') or ())
  )
  return config.get('sliding_window', 4096) if has_window else None


def write(decoder: DecoderConfig) -> dict[str, Any]:
  """The config.json of a decoder without its retrieval part.

  GPT-2 where positions are learned, otherwise Llama, Qwen2 (biases of queries, keys and values),
  Qwen3 (norms of queries and keys) or Mistral (an attention window without any of these).
  LayerNorm-1p is written as LayerNorm, and a scale of untied embeddings goes into the table.

  Raises StageError that names every setting no such architecture has, with what to change.
  """
  d = decoder
  wrong = []
  if not d.final_norm:
    wrong.append('final_norm=False: they all end in a norm')
  if d.embedding_scale != 1 and d.tie_embeddings:
    wrong.append(
      f'embedding_scale={d.embedding_scale}: only untied embeddings can take it in; set '
      'tie_embeddings=False, or embedding_scale=1'
    )
  written = (_write_gpt2 if d.positions == 'learned' else _write_llama)(d, wrong)
  if wrong:
    raise StageError(
      'no Hugging Face architecture that this project writes has ' + '; '.join(wrong)
    )
  return {
    'architectures': [_CLASSES[written['model_type']]],
    **written,
    'vocab_size': d.vocab_size,
    'tie_word_embeddings': d.tie_embeddings,
    'dtype': 'float32',
  }


def _write_gpt2(d: DecoderConfig, wrong: list[str]) -> dict[str, Any]:
  names = {ours: theirs for theirs, ours in reversed(_GPT2_ACTIVATIONS.items())}
  allowed = {
    'activation': tuple(names),
    'norm': ('layernorm', 'layernorm_1p'),
    'use_bias': (True,),
    'kv_heads': (d.num_heads,),
    'head_width': (d.width // d.num_heads,),
    'qk_norm': (False,),
  }
  _refuse_others(d, allowed, 'learned positions, as in GPT-2', wrong)
  return {
    'model_type': 'gpt2',
    'n_positions': d.max_len,
    'n_embd': d.width,
    'n_layer': d.num_layers,
    'n_head': d.num_heads,
    'n_inner': d.ff_width,
    'activation_function': names.get(d.activation),
    'layer_norm_epsilon': d.norm_eps,
  }


def _write_llama(d: DecoderConfig, wrong: list[str]) -> dict[str, Any]:
  names = {ours: theirs for theirs, ours in _LLAMA_ACTIVATIONS.items()}
  allowed = {
    'positions': ('rotary',),
    'activation': tuple(names),
    'norm': ('rmsnorm',),
    'rotary_fraction': (1.0,),
    'rotary_interleaved': (False,),
  }
  plain = 'llama' if d.attention_window is None else 'mistral'
  family = 'qwen3' if d.qk_norm else 'qwen2' if d.qkv_bias and not d.use_bias else plain
  if family in ('qwen3', 'mistral'):
    allowed |= {'use_bias': (False,), 'qkv_bias': (False,)}
  _refuse_others(d, allowed, 'rotary positions, as in Llama and Qwen', wrong)
  written = {
    'model_type': family,
    'hidden_size': d.width,
    'intermediate_size': d.ff_width,
    'num_hidden_layers': d.num_layers,
    'num_attention_heads': d.num_heads,
    'num_key_value_heads': d.kv_heads,
    'head_dim': d.head_width,
    'hidden_act': names.get(d.activation),
    'rms_norm_eps': d.norm_eps,
    'max_position_embeddings': d.max_len,
    **rope_settings.write(d),
  }
  if d.attention_window is not None:
    written |= {'sliding_window': d.attention_window, 'use_sliding_window': True}
  if family == 'llama':
    written |= {'attention_bias': d.use_bias, 'mlp_bias': d.use_bias}
  return written


def _refuse_others(
  d: DecoderConfig, allowed: Mapping[str, tuple], beside: str, wrong: list[str]
) -> None:
  for name, values in allowed.items():
    if getattr(d, name) not in values:
      choice = ' or '.join(map(repr, values))
      wrong.append(f'{name}={getattr(d, name)!r}: beside {beside}, it must be {choice}')


def with_retrieval(decoder: DecoderConfig, **changes: Any) -> RetroConfig:
  """A Retro model around a decoder that has none of it yet.

  By default: cross-attention where the reference has it (in the last layer if the decoder is too
  shallow), neighbours masked, and positions in the encoder as in the decoder.
  """
  layers = reference_retro_layers(decoder.num_layers) or (decoder.num_layers - 1,)
  defaults = {
    'cross_attention_layers': layers,
    'mask_neighbours': True,
    'encoder_rotary': decoder.positions == 'rotary',
  }
  return RetroConfig(decoder=decoder, **{**defaults, **changes})

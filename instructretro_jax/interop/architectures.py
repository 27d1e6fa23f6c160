"""Published architectures: the decoder that the config.json of a Hugging Face model describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructretro_jax.interop import rope_settings
from instructretro_jax.interop.hugging_face_settings import unknown
from instructretro_jax.model.config import DecoderConfig, RetroConfig, reference_retro_layers
from instructretro_jax.pipeline.manifest import StageError

# transformers' defaults where they differ from Llama's
_LLAMA_DEFAULTS: Mapping[str, Any] = {
  'max_position_embeddings': 2048,
  'rms_norm_eps': 1e-6,
  'hidden_act': 'silu',
  'tie_word_embeddings': False,
}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
  'llama': {},
  'mistral': {'max_position_embeddings': 131_072, 'sliding_window': 4096},
  'qwen2': {'max_position_embeddings': 32_768, 'sliding_window': 4096},
  'qwen3': {'max_position_embeddings': 32_768, 'sliding_window': 4096, 'head_dim': 128},
  'olmo2': {'rms_norm_eps': 1e-5},
  'phi3': {'max_position_embeddings': 4096, 'rms_norm_eps': 1e-5},
  'gemma': {
    'max_position_embeddings': 8192,
    'head_dim': 256,
    'hidden_act': 'gelu_pytorch_tanh',
    'tie_word_embeddings': True,
  },
}
FAMILIES = ('gpt2', 'gpt_neox', *_DEFAULTS)
_LACKING = {  # near relatives, and what of them is not here
  'gemma2': 'caps of scores and logits, and attention windows in every other layer',
  'gemma3_text': 'attention windows in most layers, with rotary positions of their own',
  'olmo3': 'attention windows in three of four layers',
}

GELUS = {'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh', 'gelu': 'gelu'}
GATED = {'silu': 'swiglu', 'gelu_pytorch_tanh': 'geglu'}
# settings that change the numbers, with the only value this model has
_FIXED: Mapping[str, Mapping[str, Any]] = {
  'gpt2': {
    'scale_attn_weights': True,
    'scale_attn_by_inverse_layer_idx': False,
    'add_cross_attention': False,
  },
  'gpt_neox': {'attention_bias': True},
  'qwen3': {'attention_bias': False},
  'olmo2': {'attention_bias': False},
  'gemma': {'attention_bias': False},
}


def read(config: Mapping[str, Any]) -> DecoderConfig:
  """The decoder that a config.json describes; what it leaves out has transformers' default.

  Raises StageError that names every setting this model does not have.
  """
  family = config.get('model_type')
  if family in _LACKING:
    raise StageError(f'model_type is {family!r}, which has {_LACKING[family]}: not supported')
  if family not in FAMILIES:
    raise StageError(f'model_type is {family!r}; known are {", ".join(FAMILIES)}')
  fixed = {**_FIXED.get(family, {}), 'quantization_config': None}
  wrong = [
    f'{name} is {config[name]!r}, supported is {value!r}'
    for name, value in fixed.items()
    if config.get(name, value) != value
  ]
  wrong += unknown(config, family)
  fields = {'gpt2': _gpt2, 'gpt_neox': _gpt_neox}.get(family, _llama)(config, wrong)
  if wrong:
    raise StageError(f'{family}: ' + '; '.join(wrong))
  try:
    decoder = DecoderConfig(**fields)
  except ValueError as error:
    raise StageError(f'{family}: {error}') from error
  rotated = int(decoder.head_width * decoder.rotary_fraction)
  if decoder.positions == 'rotary' and rotated % 2:
    channels = f'{rotated} of {decoder.head_width}'
    raise StageError(f'{family}: rotary positions turn pairs of channels, not {channels} of a head')
  return decoder


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
    'activation': _choose('activation_function', act, GELUS, wrong),
    'norm': 'layernorm',
    'norm_eps': config.get('layer_norm_epsilon', 1e-5),
    'positions': 'learned',
    'max_len': max_len,
    'use_bias': True,
    'tie_embeddings': config.get('tie_word_embeddings', True),
  }


_WIDTHS = (
  'vocab_size',
  'hidden_size',
  'num_hidden_layers',
  'num_attention_heads',
  'intermediate_size',
)


def _gpt_neox(config: Mapping[str, Any], wrong: list[str]) -> dict[str, Any]:
  vocab_size, width, num_layers, num_heads, ff_width = _required(config, _WIDTHS, wrong)
  max_len = config.get('max_position_embeddings') or 2048
  rope = rope_settings.parameters(config)
  base = rope_settings.base(config, 'rotary_emb_base')
  fraction = rope.get('partial_rotary_factor', config.get('rotary_pct', 0.25))
  for name, value in (('rope_theta', base), ('partial_rotary_factor', fraction)):
    if config.get(name, value) != value:
      wrong.append(f'{name} is {config[name]!r}, but {value!r} under its name of GPT-NeoX')
  return {
    'vocab_size': vocab_size,
    'num_layers': num_layers,
    'width': width,
    'num_heads': num_heads,
    'ff_width': ff_width,
    'activation': _choose('hidden_act', config.get('hidden_act', 'gelu'), GELUS, wrong),
    'norm': 'layernorm',
    'norm_eps': config.get('layer_norm_eps', 1e-5),
    'parallel_residual': config.get('use_parallel_residual', True),
    'positions': 'rotary',
    'rotary_fraction': float(fraction),
    'rotary_base': base,
    'rotary_scaling': rope_settings.scaling(config, max_len, wrong),
    'max_len': max_len,
    'use_bias': True,
    'tie_embeddings': config.get('tie_word_embeddings', False),
  }


def _llama(config: Mapping[str, Any], wrong: list[str]) -> dict[str, Any]:
  family = config['model_type']
  default = {**_LLAMA_DEFAULTS, **_DEFAULTS[family]}
  get = lambda name: config.get(name, default.get(name))
  vocab_size, width, num_layers, num_heads, ff_width = _required(config, _WIDTHS, wrong)
  kv_heads = config.get('num_key_value_heads')
  if kv_heads is None and family not in (
    'llama',
    'olmo2',
    'phi3',
  ):  # others have a number of theirs
    wrong.append('num_key_value_heads is missing')
  max_len = config.get('max_position_embeddings') or default['max_position_embeddings']
  head_width = get('head_dim')
  biases = bool(config.get('attention_bias')), bool(config.get('mlp_bias'))
  if family == 'llama' and len(set(biases)) > 1:
    wrong.append(f'attention_bias and mlp_bias are {biases}, supported where equal')
  window = _window(config, family, get('sliding_window'))
  if window is not None and window < max_len:
    wrong.append(
      f'sliding_window is {window}, shorter than max_position_embeddings {max_len}: only attention '
      'to all earlier tokens is supported'
    )
  scaling = rope_settings.scaling(config, max_len, wrong)
  if family == 'phi3' and scaling is not None:
    wrong.append('rope_scaling of phi3 is longrope in transformers, which is not supported')
  rope = rope_settings.parameters(config)
  fraction = rope.get('partial_rotary_factor', config.get('partial_rotary_factor', 1))
  if fraction != 1 and family != 'phi3':
    wrong.append('partial_rotary_factor is not 1')
  return {
    'vocab_size': vocab_size,
    'num_layers': num_layers,
    'width': width,
    'num_heads': num_heads,
    'ff_width': ff_width,
    'num_kv_heads': None if kv_heads == num_heads else kv_heads,
    'width_per_head': None if head_width is None or head_width * num_heads == width else head_width,
    'activation': _gated(config, family, get('hidden_act'), wrong),
    'norm': 'rmsnorm_1p' if family == 'gemma' else 'rmsnorm',
    'norm_eps': get('rms_norm_eps'),
    'norm_placement': 'output' if family == 'olmo2' else 'input',
    'positions': 'rotary',
    'rotary_fraction': float(fraction),
    'rotary_base': rope_settings.base(config),
    'rotary_scaling': scaling,
    'max_len': max_len,
    'attention_window': window,
    'use_bias': family == 'llama' and all(biases),
    'qkv_bias': family == 'qwen2',
    'qk_norm': family in ('qwen3', 'olmo2'),
    'qk_norm_across_heads': family == 'olmo2',
    'tie_embeddings': get('tie_word_embeddings'),
    'embedding_scale': width**0.5 if family == 'gemma' else 1.0,
  }


def _gated(config: Mapping[str, Any], family: str, act: str, wrong: list[str]) -> str:
  """The gated activation. Gemma's first files say gelu, and mean its tanh form."""
  if family != 'gemma':
    return _choose('hidden_act', act, GATED, wrong)
  name = 'hidden_act' if config.get('hidden_activation') is None else 'hidden_activation'
  return _choose(name, config.get('hidden_activation') or act, {**GATED, 'gelu': 'geglu'}, wrong)


def _window(config: Mapping[str, Any], family: str, window: int | None) -> int | None:
  """How many tokens a token attends to, itself included; None: all before it."""
  has_window = (
    family in ('mistral', 'phi3')
    or config.get('use_sliding_window')
    or 'sliding_attention' in (config.get('layer_types') or ())
  )
  return window if has_window else None


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

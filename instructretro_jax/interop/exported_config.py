"""The config.json that is written for a decoder, of the architecture in transformers that is it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructretro_jax.interop import rope_settings
from instructretro_jax.interop.architectures import GATED, GELUS
from instructretro_jax.model.config import DecoderConfig
from instructretro_jax.pipeline.manifest import StageError

_CLASSES = {
  'gpt2': 'GPT2LMHeadModel',
  'gpt_neox': 'GPTNeoXForCausalLM',
  'llama': 'LlamaForCausalLM',
  'mistral': 'MistralForCausalLM',
  'qwen2': 'Qwen2ForCausalLM',
  'qwen3': 'Qwen3ForCausalLM',
  'olmo2': 'Olmo2ForCausalLM',
  'phi3': 'Phi3ForCausalLM',
  'gemma': 'GemmaForCausalLM',
}
_BESIDE = {  # what a family was chosen for
  'gpt2': 'learned positions, as in GPT-2',
  'gpt_neox': 'LayerNorm and no learned positions, as in GPT-NeoX',
  'olmo2': 'norms of what attention and MLP give, as in OLMo 2',
  'phi3': 'rotary positions of a part of each head, as in Phi-3',
}
_GELU_NAMES = {ours: theirs for theirs, ours in reversed(GELUS.items())}
_GATED_NAMES = {ours: theirs for theirs, ours in GATED.items()}


def write(decoder: DecoderConfig) -> dict[str, Any]:
  """The config.json of a decoder without its retrieval part.

  GPT-2 where positions are learned, else GPT-NeoX where norms have a bias, else OLMo 2 (norms of
  outputs), Gemma (scales of norms less 1, embeddings times the root of the width), Qwen3 (norms of
  queries and keys), Qwen2 (their biases), Phi-3 (a part of each head is rotated), Mistral (an
  attention window) or Llama. Of others, norms of kind -1p are written as the plain ones, and a
  scale of untied embeddings goes into the table.

  Raises StageError that names every setting no such architecture has, with what to change.
  """
  d, family = decoder, _family(decoder)
  wrong = []
  if not d.final_norm:
    wrong.append('final_norm=False: they all end in a norm')
  if d.embedding_scale != 1 and d.tie_embeddings and family != 'gemma':
    wrong.append(
      f'embedding_scale={d.embedding_scale}: only untied embeddings can take it in; set '
      'tie_embeddings=False, or embedding_scale=1'
    )
  beside = _BESIDE.get(family, 'rotary positions, as in Llama and Qwen')
  for name, values in _allowed(d, family).items():
    if getattr(d, name) not in values:
      choice = ' or '.join(map(repr, values))
      wrong.append(f'{name}={getattr(d, name)!r}: beside {beside}, it must be {choice}')
  if wrong:
    raise StageError(
      'no Hugging Face architecture that this project writes has ' + '; '.join(wrong)
    )
  settings = {'gpt2': _gpt2, 'gpt_neox': _gpt_neox}.get(family, _llama)
  return {
    'architectures': [_CLASSES[family]],
    'model_type': family,
    **settings(d, family),
    'vocab_size': d.vocab_size,
    'tie_word_embeddings': d.tie_embeddings,
    'dtype': 'float32',
  }


def is_folded(family: str) -> bool:
  """Whether an architecture has neither norms of kind -1p nor a scale of embeddings."""
  return family != 'gemma'


def _family(d: DecoderConfig) -> str:
  if d.positions == 'learned':
    return 'gpt2'
  if d.norm.startswith('layernorm'):
    return 'gpt_neox'
  if d.norm_placement == 'output':
    return 'olmo2'
  if d.norm == 'rmsnorm_1p' and d.embedding_scale == d.width**0.5:
    return 'gemma'
  if d.qk_norm:
    return 'qwen3'
  if d.qkv_bias and not d.use_bias:
    return 'qwen2'
  if d.rotary_fraction != 1:
    return 'phi3'
  return 'llama' if d.attention_window is None else 'mistral'


def _allowed(d: DecoderConfig, family: str) -> Mapping[str, tuple[Any, ...]]:
  """The values that an architecture has of each setting that it does not have all of."""
  is_gelu, is_olmo2 = family in ('gpt2', 'gpt_neox'), family == 'olmo2'
  of_norm = ('layernorm', 'layernorm_1p') if is_gelu else ('rmsnorm', 'rmsnorm_1p')
  allowed: dict[str, tuple[Any, ...]] = {
    'activation': tuple(_GELU_NAMES if is_gelu else _GATED_NAMES),
    'norm': of_norm,
    'norm_placement': ('output' if is_olmo2 else 'input',),
    'qk_norm': (is_olmo2 or family == 'qwen3',),
    'qk_norm_across_heads': (is_olmo2,),
  }
  if family != 'gpt_neox':
    allowed['parallel_residual'] = (False,)
  if family != 'gpt2':
    allowed |= {'positions': ('rotary',), 'rotary_interleaved': (False,)}
  if family not in ('gpt2', 'gpt_neox', 'phi3'):
    allowed['rotary_fraction'] = (1.0,)
  if family == 'phi3':
    allowed['rotary_scaling'] = (None,)
  if is_gelu:
    allowed |= {'use_bias': (True,), 'kv_heads': (d.num_heads,)}
    allowed |= {'head_width': (d.width // d.num_heads,)}
  elif family not in ('llama', 'qwen2'):
    allowed |= {'use_bias': (False,), 'qkv_bias': (False,)}
  if is_gelu or family in ('olmo2', 'gemma'):
    allowed['attention_window'] = (None,)
  return allowed


def _gpt2(d: DecoderConfig, family: str) -> dict[str, Any]:
  return {
    'n_positions': d.max_len,
    'n_embd': d.width,
    'n_layer': d.num_layers,
    'n_head': d.num_heads,
    'n_inner': d.ff_width,
    'activation_function': _GELU_NAMES[d.activation],
    'layer_norm_epsilon': d.norm_eps,
  }


def _widths(d: DecoderConfig) -> dict[str, Any]:
  return {
    'hidden_size': d.width,
    'intermediate_size': d.ff_width,
    'num_hidden_layers': d.num_layers,
    'num_attention_heads': d.num_heads,
    'max_position_embeddings': d.max_len,
    **rope_settings.write(d),
  }


def _gpt_neox(d: DecoderConfig, family: str) -> dict[str, Any]:
  return {
    **_widths(d),
    'hidden_act': _GELU_NAMES[d.activation],
    'layer_norm_eps': d.norm_eps,
    'use_parallel_residual': d.parallel_residual,
    'rotary_pct': d.rotary_fraction,
    'rotary_emb_base': d.rotary_base,
  }


def _llama(d: DecoderConfig, family: str) -> dict[str, Any]:
  written = {
    **_widths(d),
    'num_key_value_heads': d.kv_heads,
    'head_dim': d.head_width,
    'hidden_act': _GATED_NAMES[d.activation],
    'rms_norm_eps': d.norm_eps,
  }
  if d.attention_window is not None:
    written |= {'sliding_window': d.attention_window, 'use_sliding_window': True}
  if family == 'llama':
    written |= {'attention_bias': d.use_bias, 'mlp_bias': d.use_bias}
  return written

"""Which of Megatron's arguments leave the numbers of a checkpoint alone.

Most arguments are of training. Those that are known to change what a model computes, and that
this model has no switch for, must have the values named here. An argument that nobody here knows,
but whose name is that of such a thing, must be off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import re
from typing import Any

_OFF = (None, False)
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
  'apply_residual_connection_post_layernorm': _OFF,
  'position_embedding_type': ('learned_absolute', 'rope', 'none', None),
  'rotary_seq_len_interpolation_factor': (None, 1),
  'no_rope_freq': _OFF,  # layers without positions
  'mrope_section': _OFF,
  'num_experts': (None, 0),
  'qk_layernorm': _OFF,
  'qk_l2_norm': _OFF,
  'qk_clip': _OFF,
  'softmax_type': ('vanilla', None),
  'sliding_window': _OFF,
  'window_size': _OFF,
  'window_attn_skip_freq': _OFF,
  'attention_chunk_size': _OFF,
  'multi_latent_attention': _OFF,
  'attention_output_gate': _OFF,
  'add_qkv_bias': _OFF,
  'quick_geglu': _OFF,
  'activation_func_clamp_value': _OFF,
  'glu_linear_offset': (None, 0),
  'heterogeneous_layers_config_path': _OFF,
  'hybrid_override_pattern': _OFF,
  'mtp_num_layers': (None, 0),
}
# read by megatron_args.py, of training alone, or without effect where what they go with is off
_KNOWN = frozenset(
  {
    'rotary_base',
    'rotary_percent',
    'rotary_interleaved',
    'use_rotary_position_embeddings',
    'use_rope_scaling',  # of Llama 3.1 and later
    'rope_scaling_factor',
    'rotary_scaling_factor',
    'rope_type',
    'apply_rope_fusion',
    'masked_softmax_fusion',
    'attention_softmax_in_fp32',
    'apply_query_key_layer_scaling',
    'loss_scale_window',
    'relative_attention_num_buckets',
    'relative_attention_max_distance',
    'mtp_loss_scaling_factor',
  }
)
_TELLING = re.compile(
  r'(^|_)(rope|rotary|yarn|alibi|softmax|sinks?|window|soft_?cap|clamp|relative|positional|mup'
  r'|logits?_scal(e|ing)|(embedding|attention|residual)_(multiplier|scal(e|ing)))(_|$)'
)


def unsupported(arguments: Mapping[str, Any]) -> Iterator[str]:
  """The arguments that would be read past, each with its value and what is supported."""
  for name, value in arguments.items():
    if name in _UNSUPPORTED:
      if value not in _UNSUPPORTED[name]:
        yield f'{name} is {value!r}: only {_UNSUPPORTED[name][0]!r} is supported'
    elif name not in _KNOWN and _TELLING.search(name) and value not in (None, False, 0, '', ()):
      yield f'{name} is {value!r}: it is not known here, and may change what the model computes'

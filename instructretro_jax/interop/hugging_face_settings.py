"""Which settings of a config.json are read, and which change nothing of what a model computes.

All others are refused unless they are off: what they do is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import re
from typing import Any

_READ_BY_ALL = frozenset({'model_type', 'vocab_size', 'tie_word_embeddings', 'quantization_config'})
_READ_BUT_GPT2 = _READ_BY_ALL | {
  'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads', 'hidden_act',
  'max_position_embeddings', 'rope_theta', 'rope_scaling', 'rope_parameters',
  'partial_rotary_factor', 'original_max_position_embeddings', 'attention_bias',
}  # fmt: skip
_READ: Mapping[str, frozenset[str]] = {
  'gpt2': _READ_BY_ALL
  | {
    'n_positions', 'n_embd', 'n_layer', 'n_head', 'n_inner', 'activation_function',
    'layer_norm_epsilon', 'scale_attn_weights', 'scale_attn_by_inverse_layer_idx',
    'add_cross_attention',
    'n_ctx',  # n_positions, in files of 2019
    'reorder_and_upcast_attn',  # of half precision: rounding
  },
  'gpt_neox': _READ_BUT_GPT2
  | {'layer_norm_eps', 'rotary_pct', 'rotary_emb_base', 'use_parallel_residual'},
  'gemma': _READ_BUT_GPT2
  | {
    'num_key_value_heads', 'head_dim', 'rms_norm_eps',
    'hidden_activation',  # before hidden_act
  },
  'llama': _READ_BUT_GPT2
  | {
    'num_key_value_heads', 'head_dim', 'rms_norm_eps', 'mlp_bias', 'sliding_window',
    'use_sliding_window', 'layer_types',
    'max_window_layers',  # without use_sliding_window, which is refused
    'pretraining_tp',  # in how many pieces products are computed
  },
}  # fmt: skip
# of training, of generation, of files and of tasks
_WITHOUT_EFFECT = re.compile(
  r'_.*|transformers.*|architectures|(torch_)?dtype|torchscript|(use_)?bfloat16|use_cache'
  r'|(bos|eos|pad|unk|sep|cls|mask|decoder_start|forced_bos|forced_eos)_token(_id)?|tokenizer_class'
  r'|.*dropout|.*_pdrop|.*initializer_range|gradient_checkpointing|neftune_noise_alpha'
  r'|summary_.*|id2label|label2id|num_labels|problem_type|task_specific_params|finetuning_task'
  r'|output_(attentions|hidden_states|scores|past)|return_dict.*|keys_to_ignore_at_inference'
  r'|chunk_size_feed_forward|(attn|attention)_implementation|name_or_path|unsloth_.*|prefix'
  r'|is_llama_config|(max|min)_length|max_new_tokens|do_sample|early_stopping|num_beam.*'
  r'|temperature|top_[kp]|typical_p|.*_penalty|(encoder_)?no_repeat_ngram_size|bad_words_ids'
  r'|num_return_sequences|remove_invalid_values|tf_legacy_loss|(begin_)?suppress_tokens'
)
_CODE = 'auto_map'
_OFF = (None, False, 0, '', [], {})


def unknown(config: Mapping[str, Any], family: str) -> Iterator[str]:
  """The settings that would be read past, in words; families without a list have Llama's."""
  read = _READ.get(family, _READ['llama'])
  for name, value in config.items():
    if name == _CODE:
      if classes := [kind for kind in value or {} if 'Tokenizer' not in kind]:
        yield f'auto_map names code of its own for {", ".join(classes)}, which is not run here'
    elif name not in read and not _WITHOUT_EFFECT.fullmatch(name) and value not in _OFF:
      yield (
        f'{name} is {value!r}, which is not known here and may change what the model computes (if '
        'it does not, take it out of config.json)'
      )

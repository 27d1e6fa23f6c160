"""Arguments that change what a Megatron checkpoint computes are refused by name."""

import pytest

from instructretro_jax.interop.megatron_settings import unsupported

# as Megatron-LM stores them, with its defaults, among what is of training alone
PLAIN = {
  'position_embedding_type': 'rope', 'rotary_base': 500_000, 'rotary_percent': 1.0,
  'rotary_interleaved': False, 'rotary_seq_len_interpolation_factor': None,
  'use_rope_scaling': True, 'rope_scaling_factor': 8.0, 'no_rope_freq': None,
  'softmax_type': 'vanilla', 'window_size': None, 'window_attn_skip_freq': None,
  'attention_softmax_in_fp32': True, 'masked_softmax_fusion': True, 'apply_rope_fusion': True,
  'loss_scale_window': 1000, 'mrope_section': None, 'qk_layernorm': False, 'num_experts': None,
  'relative_attention_num_buckets': 32, 'relative_attention_max_distance': 128,
  'glu_linear_offset': 0.0, 'mtp_num_layers': None, 'lr': 1e-4, 'train_iters': 1000,
}  # fmt: skip


def test_the_defaults_of_megatron_pass():
  assert list(unsupported(PLAIN)) == []


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('no_rope_freq', 4),
    ('qk_l2_norm', True),
    ('attention_chunk_size', 8192),
    ('softmax_type', 'off-by-one'),
    ('activation_func_clamp_value', 7.0),
    ('glu_linear_offset', 1.0),
    ('quick_geglu', True),
    ('add_qkv_bias', True),
    ('position_embedding_type', 'relative'),
    ('position_embedding_type', 'mrope'),
    ('mrope_section', [16, 24, 24]),
    ('window_size', (128, 0)),
    ('num_experts', 8),
    ('multi_latent_attention', True),
    ('rotary_seq_len_interpolation_factor', 4),
    ('mtp_num_layers', 1),
    # of a Megatron that is not known here
    ('yarn_rotary_scaling_factor', 32.0),
    ('use_attention_sinks', True),
    ('logit_scaling', 8.0),
    ('attn_logit_soft_cap', 30.0),
  ],
)
def test_what_changes_the_numbers_is_named(name, value):
  (found,) = unsupported({**PLAIN, name: value})
  assert found.startswith(f'{name} is {value!r}: ')

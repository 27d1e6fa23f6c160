"""Models that are published: what their config.json says, what gin/models has, and their size."""

import dataclasses
import math
from pathlib import Path

import pytest

from instructretro_jax.interop import architectures, exported_config, tensor_table
from instructretro_jax.model.config import RetroConfig
from instructretro_jax.pipeline import gin_adapter

MODELS = Path(__file__).resolve().parents[2] / 'gin' / 'models'

LLAMA = {
  'model_type': 'llama',
  'hidden_act': 'silu',
  'rms_norm_eps': 1e-5,
  'tie_word_embeddings': True,
}
SMOLLM2 = {**LLAMA, 'vocab_size': 49152, 'max_position_embeddings': 8192}
LLAMA_3_2 = {
  **LLAMA, 'vocab_size': 128256, 'num_key_value_heads': 8, 'intermediate_size': 8192,
  'max_position_embeddings': 131072, 'rope_theta': 500000.0, 'attention_bias': False,
  'mlp_bias': False, 'pretraining_tp': 1,
  'rope_scaling': {
    'factor': 32.0, 'high_freq_factor': 4.0, 'low_freq_factor': 1.0,
    'original_max_position_embeddings': 8192, 'rope_type': 'llama3',
  },
}  # fmt: skip
PYTHIA = {
  'model_type': 'gpt_neox', 'vocab_size': 50304, 'hidden_act': 'gelu', 'layer_norm_eps': 1e-5,
  'max_position_embeddings': 2048, 'rotary_emb_base': 10000, 'rotary_pct': 0.25,
  'tie_word_embeddings': False, 'use_parallel_residual': True, 'num_hidden_layers': 24,
  'num_attention_heads': 16,
}  # fmt: skip
QWEN3 = {
  **LLAMA, 'model_type': 'qwen3', 'vocab_size': 151936, 'attention_bias': False, 'head_dim': 128,
  'max_position_embeddings': 40960, 'max_window_layers': 28, 'num_attention_heads': 16,
  'num_hidden_layers': 28, 'num_key_value_heads': 8, 'rms_norm_eps': 1e-6, 'rope_scaling': None,
  'rope_theta': 1000000, 'sliding_window': None, 'use_sliding_window': False,
}  # fmt: skip
# what config.json says, and the number of parameters of the published weights
PUBLISHED = {
  'smollm2_135m': (
    {**SMOLLM2, 'hidden_size': 576, 'intermediate_size': 1536, 'num_attention_heads': 9,
     'num_hidden_layers': 30, 'num_key_value_heads': 3, 'rope_theta': 100000},
    134_515_008,
  ),
  'smollm2_360m': (
    {**SMOLLM2, 'hidden_size': 960, 'intermediate_size': 2560, 'num_attention_heads': 15,
     'num_hidden_layers': 32, 'num_key_value_heads': 5, 'rope_theta': 100000},
    361_821_120,
  ),
  'smollm2_1.7b': (
    {**SMOLLM2, 'hidden_size': 2048, 'intermediate_size': 8192, 'num_attention_heads': 32,
     'num_hidden_layers': 24, 'num_key_value_heads': 32, 'rope_theta': 130000},
    1_711_376_384,
  ),
  'pythia_410m': ({**PYTHIA, 'hidden_size': 1024, 'intermediate_size': 4096}, 405_334_016),
  'pythia_1.4b': ({**PYTHIA, 'hidden_size': 2048, 'intermediate_size': 8192}, 1_414_647_808),
  'llama_3.2_1b': (
    {**LLAMA_3_2, 'hidden_size': 2048, 'num_attention_heads': 32, 'num_hidden_layers': 16,
     'head_dim': 64},
    1_235_814_400,
  ),
  'llama_3.2_3b': (
    {**LLAMA_3_2, 'hidden_size': 3072, 'num_attention_heads': 24, 'num_hidden_layers': 28,
     'head_dim': 128},
    3_212_749_824,
  ),
  'qwen3_0.6b': ({**QWEN3, 'hidden_size': 1024, 'intermediate_size': 3072}, 596_049_920),
  'qwen3_1.7b': ({**QWEN3, 'hidden_size': 2048, 'intermediate_size': 6144}, 1_720_574_976),
  'olmo_2_1b': (
    {'model_type': 'olmo2', 'vocab_size': 100352, 'hidden_size': 2048, 'intermediate_size': 8192,
     'num_attention_heads': 16, 'num_hidden_layers': 16, 'num_key_value_heads': 16,
     'hidden_act': 'silu', 'max_position_embeddings': 4096, 'rms_norm_eps': 1e-6,
     'rope_scaling': None, 'rope_theta': 500000, 'attention_bias': False,
     'tie_word_embeddings': False},
    1_484_916_736,
  ),
  'gemma_2b': (
    {'model_type': 'gemma', 'vocab_size': 256000, 'hidden_size': 2048, 'intermediate_size': 16384,
     'num_attention_heads': 8, 'num_hidden_layers': 18, 'num_key_value_heads': 1, 'head_dim': 256,
     'hidden_act': 'gelu', 'max_position_embeddings': 8192, 'rms_norm_eps': 1e-6,
     'rope_scaling': None, 'rope_theta': 10000.0, 'attention_bias': False},
    2_506_172_416,
  ),
}  # fmt: skip


def num_parameters(decoder):
  """Of all layers, counted from the first."""
  config = RetroConfig(
    decoder=dataclasses.replace(decoder, num_layers=1), cross_attention_layers=(0,)
  )
  shapes = tensor_table.decoder_shapes(config).items()
  times = lambda path: decoder.num_layers if path.startswith('decoder_0/') else 1
  return sum(times(path) * math.prod(shape) for path, shape in shapes)


@pytest.mark.parametrize('name', PUBLISHED)
def test_gin_has_what_the_model_says_of_itself(name):
  content, size = PUBLISHED[name]
  config, _ = gin_adapter.configure(RetroConfig, [str(MODELS / f'{name}.gin')])
  read = architectures.read(content)
  assert dataclasses.replace(config.decoder, init_std=read.init_std) == read
  assert architectures.read(exported_config.write(read)) == read
  assert config.retro_layers == architectures.with_retrieval(read).retro_layers
  assert num_parameters(config.decoder) == size

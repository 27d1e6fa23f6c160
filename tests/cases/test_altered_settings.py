"""Published checkpoint layouts: read as they are, and refused with any one of these settings."""

from collections.abc import Callable
from pathlib import Path
import re

import pytest

from instructretro_jax.interop import gguf, huggingface, megatron
from instructretro_jax.pipeline.manifest import StageError
from tests.interop.test_gguf import write_gguf
from tests.interop.test_huggingface import copy_with
from tests.interop.test_megatron import RELEASED, make, write_legacy


def hugging_face(family: str) -> Callable[..., object]:
  return lambda folder, **altered: huggingface.load_lazy(copy_with(folder, family, **altered))


def of_gguf(folder: Path, **altered) -> object:
  more = [(name.replace('__', '.'), value) for name, value in altered.items()]
  return gguf.load(write_gguf(folder / 'tiny.gguf', more=more))


def of_megatron(folder: Path, **altered) -> object:
  write_legacy(folder, *make(RELEASED), **altered)
  return megatron.load_lazy(folder)


LAYOUTS = {
  'llama': (
    hugging_face('llama'),
    {
      'rope_scaling': {'rope_type': 'longrope', 'factor': 8.0},
      'partial_rotary_factor': 0.5,
      'hidden_act': 'relu',
      'attn_logit_softcapping': 50.0,
    },
  ),
  'qwen2': (
    hugging_face('qwen2'),
    {
      'hidden_act': 'gelu',
      'rope_scaling': {'type': 'dynamic', 'factor': 4.0},
      'quantization_config': {'bits': 4},
      'residual_multiplier': 0.22,
    },
  ),
  'gpt2': (
    hugging_face('gpt2'),
    {
      'scale_attn_weights': False,
      'scale_attn_by_inverse_layer_idx': True,
      'add_cross_attention': True,
      'activation_function': 'relu',
    },
  ),
  'gguf': (
    of_gguf,
    {
      'rope__scaling__attn_factor': 4.0,
      'attention__sliding_window': 16,
      'logit_scale': 8.0,
      'expert_count': 4,
    },
  ),
  'megatron': (
    of_megatron,
    {
      'rotary_seq_len_interpolation_factor': 4,
      'no_rope_freq': 4,
      'softmax_type': 'off-by-one',
      'qk_l2_norm': True,
    },
  ),
}
ALTERATIONS = [(layout, name) for layout, (_, altered) in LAYOUTS.items() for name in altered]


@pytest.mark.parametrize('layout', LAYOUTS)
def test_unaltered_it_is_read(tmp_path, layout):
  read, _ = LAYOUTS[layout]
  assert read(tmp_path)


@pytest.mark.parametrize(('layout', 'name'), ALTERATIONS)
def test_one_altered_setting_is_refused_by_its_name(tmp_path, layout, name):
  read, altered = LAYOUTS[layout]
  # a file of today spells the scaling and the base of rotary positions in one
  beside = {'rope_parameters': None} if name == 'rope_scaling' else {}
  with pytest.raises(StageError, match=re.escape(name.replace('__', '.'))):
    read(tmp_path, **{name: altered[name]}, **beside)

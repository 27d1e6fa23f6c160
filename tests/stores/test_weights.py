"""Weights into a store, and from there."""

from flax import linen as nn
from flax import traverse_util
import jax
import numpy as np

from instructretro_jax.interop import huggingface, stages
from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.train.checkpoint import Checkpoint
from instructretro_jax.train.checkpoint_place import complete_steps
from instructretro_jax.train.checkpoint_writer import write_checkpoint
from instructretro_jax.train.lazy_params import LazyArray
from instructretro_jax.train.state import init_params

DECODER = DecoderConfig(vocab_size=16, num_layers=1, width=8, num_heads=2, ff_width=8)
CONFIG = RetroConfig(decoder=DECODER, chunk_len=4, cross_attention_layers=(0,))


def test_a_checkpoint_is_imported_exported_and_read_again(store):
  params = nn.unbox(jax.jit(lambda: init_params(CONFIG, 0, False))())
  flat = {path: np.asarray(x) for path, x in traverse_util.flatten_dict(params, sep='/').items()}
  lazy = {path: LazyArray(x.shape, x.dtype, lambda x=x: x) for path, x in flat.items()}
  write_checkpoint(store / 'gpt', CONFIG, lazy, {'vocabulary': 'v'})
  assert complete_steps(store / 'gpt' / 'checkpoints') == [0]
  assert Checkpoint(store / 'gpt').record['vocabulary'] == 'v'
  stages.export(store / 'gpt', store / 'exported', 'huggingface')
  assert stages.locate(f'{store}/exported') == ('huggingface', store / 'exported')
  found, tensors = huggingface.load_lazy(store / 'exported')
  assert found.decoder.width == 8 and tensors.keys() == flat.keys()
  for path, x in flat.items():
    np.testing.assert_array_equal(tensors[path].read(), x)

"""Model FLOPs against a count by hand and against the matrix products of a compiled step."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from instructretro_jax.model import flops
from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.model.retro import Retro
from instructretro_jax.precompile import counts, hlo
from instructretro_jax.train.multipliers import split_trainable
from instructretro_jax.train.optimizer import AdamW
from instructretro_jax.train.state import init_params
from instructretro_jax.train.step import TrainState, make_train_step

DECODER = DecoderConfig(
  vocab_size=96, num_layers=4, width=32, num_heads=4, num_kv_heads=2, ff_width=80
)
CONFIG = RetroConfig(decoder=DECODER, chunk_len=8, cross_attention_layers=(1, 3))
OWN_WIDTHS = dataclasses.replace(
  CONFIG, encoder_width=16, encoder_heads=2, encoder_ff_width=24, encoder_layers=3
)
PLAIN = dataclasses.replace(
  CONFIG, decoder=dataclasses.replace(DECODER, activation='gelu', num_kv_heads=None)
)
PARALLEL = dataclasses.replace(
  CONFIG, decoder=dataclasses.replace(DECODER, activation='gelu', parallel_residual=True)
)
FROZEN = (('encoder|cross_attention', 1.0), ('', 0.0))
B, L, K = 2, 32, 2


def compiled_flops(config, gate, lr_multipliers=()):
  """FLOPs of the matrix products that XLA compiles a train step to."""
  boxed = jax.eval_shape(lambda: init_params(config, 0, gate != 0))
  params = jax.tree.map(lambda x: x.value, boxed, is_leaf=lambda x: hasattr(x, 'value'))
  trainable, frozen = split_trainable(params, lr_multipliers)
  optimizer = AdamW(learning_rate=0.1, lr_multipliers=lr_multipliers).make(10, trainable)
  state = TrainState(
    jax.ShapeDtypeStruct((), jnp.int32),
    trainable,
    frozen,
    jax.eval_shape(optimizer.init, trainable),
  )
  array = jax.ShapeDtypeStruct
  batch = {name: array((B, L), jnp.int32) for name in ('tokens', 'targets', 'segments')}
  batch['loss_mask'] = array((B, L), jnp.float32)
  if gate:
    shape = (B, L // config.chunk_len, K, 2 * config.chunk_len)
    batch |= {'neighbours': array(shape, jnp.int32), 'neighbour_mask': array(shape, bool)}
  step = jax.jit(make_train_step(Retro(config), optimizer, gate))
  return counts.count(hlo.parse(step.lower(state, batch).compile().as_text())).flops


@pytest.mark.parametrize('config', [CONFIG, OWN_WIDTHS, PLAIN])
def test_a_compiled_step_multiplies_as_much(config):
  counted = flops.train_step_flops(
    config, batch_size=B, seq_len=L, num_neighbours=K, count_masked=True
  )
  assert compiled_flops(config, gate=1.0) == pytest.approx(counted.total, rel=1e-6)


def test_a_closed_gate_compiles_to_the_gpt():
  counted = flops.train_step_flops(
    CONFIG, batch_size=B, seq_len=L, is_open=False, count_masked=True
  )
  assert counted.encoder == counted.cross_attention == 0
  assert compiled_flops(CONFIG, gate=0.0) == pytest.approx(counted.total, rel=1e-6)


@pytest.mark.parametrize('config', [CONFIG, PARALLEL])
def test_a_frozen_decoder_saves_its_weights_gradients(config):
  counted = flops.train_step_flops(
    config,
    batch_size=B,
    seq_len=L,
    num_neighbours=K,
    is_decoder_frozen=True,
    count_masked=True,
  )
  assert compiled_flops(config, 1.0, FROZEN) == pytest.approx(counted.total, rel=1e-6)


def test_a_frozen_decoder_behind_a_closed_gate_is_refused():
  with pytest.raises(ValueError, match='nothing to train'):
    flops.train_step_flops(CONFIG, batch_size=B, seq_len=L, is_open=False, is_decoder_frozen=True)


def test_by_hand():
  """Of 43B and one sequence of 4096 tokens: 6 FLOPs a weight and token, and the attention."""
  decoder = DecoderConfig(
    vocab_size=256_000, num_layers=48, width=8192, num_heads=64, ff_width=21_824
  )
  config = RetroConfig(decoder=decoder)
  tokens, D, F = 4096, 8192, 21_824
  layer = 4 * D * D + 3 * D * F
  step = flops.train_step_flops(config, batch_size=1, seq_len=tokens)
  attention = 3 * 2 * 2 * tokens * tokens * D / 2  # forward and backward, two products, half of all
  assert step.decoder == 48 * (6 * tokens * layer + attention)
  assert step.head == 6 * tokens * D * 256_000
  # 64 chunks, each with 2 neighbours of 128 tokens: 4 neighbour tokens a token
  others = 4 * tokens
  inside = 12 * others * 128 * D
  of_chunks = 6 * (2 * others + 2 * tokens) * D * D + 12 * others * 64 * D
  assert step.encoder == 2 * (6 * others * layer + inside) + of_chunks
  read = 6 * (2 * tokens + 2 * others) * D * D + 12 * tokens * 256 * D
  assert step.cross_attention == 14 * read
  full = flops.train_step_flops(config, batch_size=1, seq_len=tokens, count_masked=True)
  assert full.total - step.total == 48 * attention


def test_decoding_reads_the_whole_cache():
  short, long = (
    flops.decode_step_flops(CONFIG, batch_size=3, cache_len=n, num_neighbours=K) for n in (10, 20)
  )
  assert long.decoder - short.decoder == 3 * 4 * (4 * 10 * 32)
  assert long.encoder == short.encoder
  closed = flops.decode_step_flops(CONFIG, batch_size=3, cache_len=10, is_open=False)
  weights = 4 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 80) + 32 * 96
  assert closed.total == 3 * (2 * weights + 4 * 4 * 10 * 32)

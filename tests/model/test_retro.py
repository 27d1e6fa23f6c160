"""The model against its numpy twin, and the properties that make it Retro."""

import dataclasses
import functools
import zlib

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructretro_jax.model.config import DecoderConfig, RetroConfig, reference_retro_layers
from instructretro_jax.model.encoder import MAX_OFFSET
from instructretro_jax.model.execution import Execution
from instructretro_jax.model.retro import Retro
from instructretro_jax.model.rotary_scaling import LinearScaling
from tests.reference import retro as twin

C, K = 4, 2
DECODER = DecoderConfig(
  vocab_size=32,
  num_layers=3,
  width=16,
  num_heads=2,
  ff_width=24,
  activation='gelu',
  init_std=0.3,
  embedding_init_std=0.5,
  embedding_scale=1.5,
)
CONFIG = RetroConfig(
  decoder=DECODER,
  chunk_len=C,
  encoder_ff_width=16,
  cross_attention_layers=(0, 2),
  mask_neighbours=True,
  encoder_rotary=True,
  encoder_relative_bias=True,
  cross_attention_rotary=True,
)


def make_inputs(length=16, batch=2, seed=0):
  rng = np.random.default_rng(seed)
  N = -(-length // C)
  tokens = rng.integers(0, 32, (batch, length))
  segments = np.ones((batch, length), np.int32)
  neighbours = rng.integers(0, 32, (batch, N, K, 2 * C))
  return tokens, segments, neighbours, np.ones(neighbours.shape, bool)


def init(config, inputs, **kwargs):
  """Random parameters, about as the model's own init but with no bias, norm or kernel at rest.

  They are drawn by numpy: a hundred draws by JAX are compiled for longer than most tests take.
  """
  fresh = functools.partial(Retro(config).init, **kwargs)
  shapes = nn.unbox(jax.eval_shape(fresh, jax.random.key(0), *inputs))['params']

  def draw(path, x):
    noise = np.random.default_rng(zlib.crc32(str(path).encode())).normal(size=x.shape)
    name = path[-1].key
    std = {'table': 0.5, 'positions': 0.5, 'head': 0.5, 'kernel': 0.2}.get(name, 0.1)
    return jnp.asarray(std * noise + (name == 'scale'))

  return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def compiled(config, gate):
  """One compilation for each configuration; a gate of None is an argument of the call."""

  def apply(params, inputs, traced_gate):
    chosen = traced_gate if gate is None else gate
    return Retro(config).apply({'params': params}, *inputs, gate=chosen, method='logits')

  return jax.jit(apply)


def logits(config, params, *inputs, gate=1.0):
  static = gate if isinstance(gate, (int, float)) else None
  return np.asarray(compiled(config, static)(params, inputs, None if static is not None else gate))


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'num_heads': 4, 'num_kv_heads': 2, 'width_per_head': 6, 'qkv_bias': True, 'qk_norm': True,
     'rotary_scaling': LinearScaling(factor=4.0)},
    {'num_heads': 4, 'num_kv_heads': 2, 'norm_placement': 'output', 'qk_norm': True,
     'qk_norm_across_heads': True},
    {'parallel_residual': True},
  ],
  ids=['plain', 'qwen-like', 'olmo-like', 'parallel'],
)  # fmt: skip
def test_equals_the_twin(changes):
  config = dataclasses.replace(CONFIG, decoder=dataclasses.replace(DECODER, **changes))
  tokens, segments, neighbours, mask = make_inputs()
  segments[0, 6:8] = 0  # the first document ends inside chunk 1, padding follows
  segments[0, 8:] = 2
  mask[0, 2, 1] = False  # one neighbour is missing
  mask[1, 1] = False  # a chunk has none
  mask[1, 2, 0, 5:] = False  # a neighbour is short
  params = init(config, (tokens, segments, neighbours, mask))
  found = logits(config, params, tokens, segments, neighbours, mask)
  flat = jax.tree.map(np.asarray, params)
  for b in range(2):
    expected = twin.logits(
      flat,
      tokens[b],
      segments[b],
      neighbours[b],
      mask[b],
      chunk_len=C,
      layers=(0, 2),
      max_offset=MAX_OFFSET,
      scale=1.5,
      interpolation=4.0 if config.decoder.rotary_scaling else 1.0,
      parallel=config.decoder.parallel_residual,
    )
    real = segments[b] > 0
    np.testing.assert_allclose(found[b][real], expected[real], atol=2e-4)


def test_an_encoder_of_its_own_width_equals_the_twin():
  widths = dict(encoder_width=12, encoder_heads=3, encoder_width_per_head=6)
  config = dataclasses.replace(CONFIG, **widths)
  inputs = make_inputs()
  params = init(config, inputs)
  assert params['encoder_embedding']['table'].shape == (32, 12)
  assert params['encoder']['layer_0']['attention']['query']['kernel'].shape == (12, 3, 6)
  found = logits(config, params, *inputs)
  flat = jax.tree.map(np.asarray, params)
  expected = twin.logits(
    flat,
    *(x[0] for x in inputs),
    chunk_len=C,
    layers=(0, 2),
    max_offset=MAX_OFFSET,
    scale=1.5,
  )
  np.testing.assert_allclose(found[0], expected, atol=2e-4)


def test_closed_gate_is_the_plain_decoder_exactly():
  inputs = make_inputs()
  params = init(CONFIG, inputs)
  plain = {k: v for k, v in params.items() if k != 'encoder'}
  without = logits(CONFIG, plain, *inputs[:2], gate=0)
  np.testing.assert_array_equal(logits(CONFIG, params, *inputs, gate=0.0), without)
  traced = logits(CONFIG, params, *inputs, gate=jnp.zeros(()))
  np.testing.assert_allclose(traced, without, atol=1e-5)


def test_closed_gate_makes_no_encoder():
  inputs = make_inputs()
  params = Retro(CONFIG).init(jax.random.key(0), *inputs[:2], gate=0)['params']
  assert 'encoder' not in params
  assert all('cross_attention' not in params[f'decoder_{n}'] for n in range(3))


def test_gate_per_sequence():
  inputs = make_inputs()
  params = init(CONFIG, inputs)
  mixed = logits(CONFIG, params, *inputs, gate=jnp.array([0.0, 1.0]))
  np.testing.assert_allclose(mixed[0], logits(CONFIG, params, *inputs, gate=0)[0], atol=1e-5)
  np.testing.assert_allclose(mixed[1], logits(CONFIG, params, *inputs, gate=1.0)[1], atol=1e-5)


@pytest.mark.parametrize('length', [16, 13, 5])
@pytest.mark.parametrize('masked', [True, False])
def test_neighbours_of_a_chunk_move_what_may_read_them_and_nothing_else(length, masked):
  config = dataclasses.replace(CONFIG, mask_neighbours=masked)
  tokens, segments, neighbours, mask = make_inputs(length)
  params = init(config, (tokens, segments, neighbours, mask))
  before = logits(config, params, tokens, segments, neighbours, mask)
  first = (length - 1) % C + 1
  for chunk in range(neighbours.shape[1]):
    changed = neighbours.copy()
    changed[0, chunk] = (changed[0, chunk] + 1) % 32
    after = logits(config, params, tokens, segments, changed, mask)
    moved = np.abs(after - before).max(axis=-1) > 0
    assert not moved[1].any()
    readable = first - 1 + chunk * C  # the last token of the chunk already reads them
    assert not moved[0, :readable].any()
    assert moved[0, readable:].all()


def test_no_segments_are_one_document_even_if_the_first_chunk_is_short():
  tokens, segments, neighbours, mask = make_inputs(13)
  params = init(CONFIG, (tokens, segments, neighbours, mask))
  one = logits(CONFIG, params, tokens, segments, neighbours, mask)
  none = logits(CONFIG, params, tokens, None, neighbours, mask)
  np.testing.assert_allclose(none, one, atol=1e-5)


@pytest.mark.parametrize('length', [16, 13])
def test_no_future_token_moves_an_earlier_logit(length):
  tokens, segments, neighbours, mask = make_inputs(length)
  params = init(CONFIG, (tokens, segments, neighbours, mask))
  before = logits(CONFIG, params, tokens, segments, neighbours, mask)
  for position in range(length):
    changed = tokens.copy()
    changed[:, position] = (changed[:, position] + 1) % 32
    after = logits(CONFIG, params, changed, segments, neighbours, mask)
    np.testing.assert_array_equal(after[:, :position], before[:, :position])
    assert (after[:, position] != before[:, position]).any()


def test_order_of_neighbours_does_not_matter():
  tokens, segments, neighbours, mask = make_inputs()
  params = init(CONFIG, (tokens, segments, neighbours, mask))
  before = logits(CONFIG, params, tokens, segments, neighbours, mask)
  after = logits(CONFIG, params, tokens, segments, neighbours[:, :, ::-1], mask)
  np.testing.assert_allclose(after, before, atol=1e-4)


def test_padding_of_a_neighbour_is_not_read():
  tokens, segments, neighbours, mask = make_inputs()
  mask[:, :, :, -2:] = False
  params = init(CONFIG, (tokens, segments, neighbours, mask))
  before = logits(CONFIG, params, tokens, segments, neighbours, mask)
  neighbours[:, :, :, -2:] = 0
  after = logits(CONFIG, params, tokens, segments, neighbours, mask)
  np.testing.assert_array_equal(after, before)


def test_another_document_does_not_read_the_neighbours():
  tokens, segments, neighbours, mask = make_inputs()
  segments[:, 8:] = 2
  params = init(CONFIG, (tokens, segments, neighbours, mask))
  before = logits(CONFIG, params, tokens, segments, neighbours, mask)
  neighbours[:, 1] = (neighbours[:, 1] + 1) % 32
  after = logits(CONFIG, params, tokens, segments, neighbours, mask)
  moved = np.abs(after - before).max(axis=(0, 2)) > 0
  assert moved.tolist() == [n == 7 for n in range(16)]


def test_value_shift_reads_the_next_value_within_a_neighbour():
  config = dataclasses.replace(CONFIG, value_shift=1, encoder_layers=0, cross_attention_layers=(0,))
  tokens, segments, neighbours, mask = make_inputs()
  params = init(CONFIG, (tokens, segments, neighbours, mask))
  before = logits(config, params, tokens, segments, neighbours, mask)
  first, last = neighbours.copy(), neighbours.copy()
  first[:, 0, :, 0] = (first[:, 0, :, 0] + 1) % 32
  last[:, 0, :, -1] = (last[:, 0, :, -1] + 1) % 32
  assert (logits(config, params, tokens, segments, first, mask) != before).any()
  assert (logits(config, params, tokens, segments, last, mask) != before).any()


@pytest.mark.parametrize(
  'changes',
  [
    {'activation': 'swiglu', 'norm': 'layernorm_1p', 'rotary_fraction': 0.5},
    {'activation': 'squared_relu', 'norm': 'layernorm', 'positions': 'learned', 'use_bias': True},
    {'activation': 'geglu', 'num_kv_heads': 1, 'tie_embeddings': False},
    {'activation': 'gelu_tanh', 'positions': 'none', 'final_norm': False},
    {'rotary_interleaved': True},
    {'norm': 'rmsnorm_1p', 'norm_placement': 'output', 'parallel_residual': True},
  ],
)
def test_every_flavour_runs_and_is_causal(changes):
  config = dataclasses.replace(CONFIG, decoder=dataclasses.replace(DECODER, **changes))
  tokens, segments, neighbours, mask = make_inputs(8)
  params = init(config, (tokens, segments, neighbours, mask))
  before = logits(config, params, tokens, segments, neighbours, mask)
  assert np.isfinite(before).all() and before.dtype == np.float32
  tokens[:, 5] = (tokens[:, 5] + 1) % 32
  after = logits(config, params, tokens, segments, neighbours, mask)
  np.testing.assert_array_equal(after[:, :5], before[:, :5])


@pytest.mark.parametrize('execution', [{'dtype': 'bfloat16'}, {'remat': 'save_block_inputs'}])
def test_execution_changes_rounding_alone(execution):
  inputs = make_inputs(8)
  params = init(CONFIG, inputs)
  model, expected = Retro(CONFIG, Execution(**execution)), logits(CONFIG, params, *inputs)
  found = jax.jit(lambda params: model.apply({'params': params}, *inputs, method='logits'))(params)
  assert found.dtype == np.float32
  atol = 0.2 if 'dtype' in execution else 1e-6  # of logits up to 6
  np.testing.assert_allclose(found, expected, atol=atol)
  assert 'dtype' not in execution or (found != expected).any()


def test_reference_rule_of_layers():
  assert reference_retro_layers(12) == (5, 8, 11)
  assert reference_retro_layers(15) == (5, 8, 11, 14)
  assert reference_retro_layers(16) == (8, 11, 14)
  assert len(reference_retro_layers(48)) == 14


def test_errors_name_both_values():
  inputs = make_inputs()
  params = init(CONFIG, inputs)
  with pytest.raises(ValueError, match='no neighbours were given'):
    logits(CONFIG, params, *inputs[:2])
  with pytest.raises(ValueError, match=r'4 chunks of 4.*\(2, 3, 2, 8\)'):
    logits(CONFIG, params, *inputs[:2], inputs[2][:, :3], inputs[3][:, :3])
  with pytest.raises(ValueError, match='qk_norm_across_heads.*qk_norm'):
    dataclasses.replace(DECODER, qk_norm_across_heads=True)
  with pytest.raises(ValueError, match='width 16.*num_heads 3'):
    dataclasses.replace(DECODER, num_heads=3)
  with pytest.raises(ValueError, match=r'\(7,\) do not fit 3'):
    dataclasses.replace(CONFIG, cross_attention_layers=(7,))

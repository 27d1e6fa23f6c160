"""The model against NVIDIA's own: megatron-core's numbers, and a twin for what no file covers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructretro_jax.interop import megatron, megatron_files
from instructretro_jax.interop.megatron_layout import CORE
from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.model.execution import Execution
from instructretro_jax.model.retro import Retro
from instructretro_jax.train.state import init_params
from tests.interop import oracles
from tests.reference.megatron import Megatron

LOGITS = {'float32': 5e-5, 'float64': 1e-10}
LOSS = {'float32': 2e-5, 'float64': 1e-10}
GRADIENT = {'float32': 5e-5, 'float64': 1e-8}  # of the largest entry of each tensor


def run(model, params, tokens, segments, neighbours, given, gate=1.0):
  return model.apply(
    {'params': params}, tokens, segments, neighbours, gate=gate, method='logits', **given
  )


def token_losses(logits, labels):
  return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]


# twelve layers unrolled: most of the time is the compiler's
quick_jit = functools.partial(
  jax.jit,
  compiler_options={'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True},
)


@functools.partial(quick_jit, static_argnums=0)
def gradients(model, params, labels, *inputs):
  def mean_loss(params):
    logits = run(model, params, *inputs)
    losses = token_losses(logits, labels)
    return losses.mean(), (logits, losses)

  (mean, (logits, losses)), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
  return logits, losses, mean, grads


def model_of(config, dtype):
  return Retro(config, Execution(dtype=dtype))


def assert_close(found, expected, atol):
  np.testing.assert_allclose(np.asarray(found), expected, atol=atol, rtol=0)


def assert_gradients(config, grads, expected, tolerance):
  found = megatron.state_dict(config, grads, CORE)
  assert set(expected) <= set(found)
  for name, want in expected.items():
    assert_close(found[name] / np.abs(want).max(), want / np.abs(want).max(), tolerance)


def test_golden_case_of_megatron_core():
  case, state, vector_grads, z = oracles.read_golden()
  config = megatron_files.config_of_case(case, max_len=48)
  config, params = megatron.load(state, config)
  inputs = z['input/tokens'].astype(int), None, z['input/neighbor_tokens'].astype(int), {}
  labels = z['input/labels'].astype(int)
  model = Retro(config)
  logits, losses, mean, grads = gradients(model, params, labels, *inputs)
  assert_close(logits[:1], oracles.from_planes(z['logits'], 1, 48, 128), LOGITS['float32'])
  assert_close(losses, z['loss'], LOSS['float32'])
  assert_close(mean, z['loss'].mean(), 2e-6)
  assert_gradients(config, grads, vector_grads, GRADIENT['float32'])
  closed = jax.jit(functools.partial(run, model, gate=0))(params, *inputs)
  assert_close(closed[:1, ::3], oracles.from_planes(z['gpt_logits'], 1, 16, 128), LOGITS['float32'])


def rope_case(name, dtype):
  """A model, its parameters, inputs, gradients of vectors, and all arrays of the case."""
  case, state, grads, z = oracles.read_rope(name)
  config = megatron_files.config_of_case(case, max_len=48)
  config, params = megatron.load(state, config)
  params = jax.tree.map(lambda x: x.astype(dtype), params)
  inputs = z['tokens'].astype(int), None, z['neighbor_tokens'].astype(int), {}
  return model_of(config, dtype), params, inputs, grads, z


@pytest.mark.parametrize('name', oracles.ROPE_CASES)
def test_rope_cases_of_megatron_core(name):
  model, params, inputs, _, z = rope_case(name, 'float32')
  logits = quick_jit(functools.partial(run, model))(params, *inputs)
  assert_close(logits[:1], z['logits'], LOGITS['float32'])
  assert_close(token_losses(logits, z['labels'].astype(int)), z['loss'], LOSS['float32'])


@pytest.mark.slow
@pytest.mark.parametrize('name', oracles.ROPE_CASES)
def test_rope_cases_of_megatron_core_in_float64(name):
  with jax.enable_x64(True):
    model, params, inputs, vector_grads, z = rope_case(name, 'float64')
    forward = quick_jit(functools.partial(run, model))
    for n in oracles.EDGES if name == 'ragged' else ():
      tokens, neighbours = (z[f'{n}/{key}'].astype(int) for key in ('tokens', 'neighbor_tokens'))
      assert_close(
        forward(params, tokens, None, neighbours, {})[:1], z[f'{n}/logits'], LOGITS['float64']
      )
    if vector_grads is None:
      logits = forward(params, *inputs)
    else:
      labels = z['labels'].astype(int)
      logits, losses, mean, grads = gradients(model, params, labels, *inputs)
      assert_close(losses, z['loss'], LOSS['float64'])
      assert_close(mean, z['loss'].mean(), LOSS['float64'])
      assert_gradients(model.config, grads, vector_grads, GRADIENT['float64'])
    assert_close(logits[:1], z['logits'], LOGITS['float64'])
    if 'gpt_logits' in z:
      closed = quick_jit(functools.partial(run, model, gate=0))(params, *inputs)
      assert_close(closed[:1, ::3], z['gpt_logits'], LOGITS['float64'])


SMALL = DecoderConfig(
  vocab_size=24,
  num_layers=6,
  width=8,
  num_heads=2,
  ff_width=12,
  activation='squared_relu',
  norm='layernorm',
  positions='rotary',
  tie_embeddings=False,
  init_std=0.4,
  embedding_init_std=0.6,
)
LEARNED = dict(positions='learned', activation='gelu', use_bias=True, tie_embeddings=True)


@pytest.mark.parametrize(
  'changes, length, num_neighbours, masks',
  [
    ({}, 12, 1, ''),
    (dict(num_layers=16, final_norm=False, positions='learned'), 9, 3, ''),
    (dict(activation='swiglu', rotary_fraction=0.5), 1, 2, ''),
    (dict(LEARNED), 7, 2, ''),
    (dict(LEARNED), 12, 2, 'documents, one mask'),
    (dict(LEARNED), 12, 2, 'mask per neighbour'),
  ],
  ids=['squared_relu', 'deep', 'one token', 'ragged', 'documents', 'neighbour masks'],
)
def test_equals_the_twin_in_float64(changes, length, num_neighbours, masks):
  C, B = 4, 2
  decoder = dataclasses.replace(SMALL, **changes)
  config = RetroConfig(decoder=decoder, chunk_len=C, encoder_residual='normed')
  rng = np.random.default_rng(length)
  N = -(-length // C)
  tokens = rng.integers(0, 24, (B, length))
  neighbours = rng.integers(0, 24, (B, N, num_neighbours, 2 * C))
  positions = np.tile(np.arange(length), (B, 1))
  segments, encoder_mask = None, None
  allowed = np.tile(np.tril(np.ones((length, length), bool)), (B, 1, 1))
  if 'documents' in masks:
    positions[0, 5:] -= 5  # a document ends inside a chunk
    segments = np.cumsum(positions == 0, axis=1)
    allowed &= segments[:, :, None] == segments[:, None, :]
    encoder_mask = rng.random((1, 1, 1, 2 * C, 2 * C)) < 0.7
  if 'per neighbour' in masks:
    real = np.arange(2 * C) < rng.integers(1, 2 * C, (B, N, num_neighbours, 1))
    real[0, 1, 1] = False  # a neighbour that is all padding
    encoder_mask = np.broadcast_to(real[..., None, :], (*real.shape, 2 * C))
  with jax.enable_x64(True):
    abstract = jax.eval_shape(lambda: init_params(config, 0, True))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape) * 0.5, abstract)
    params = jax.tree.map(lambda x: x.value, params, is_leaf=lambda x: hasattr(x, 'value'))
    given = {'positions_BL': positions, 'encoder_mask_BNKRR': encoder_mask}
    model = model_of(config, 'float64')
    found = quick_jit(functools.partial(run, model))(params, tokens, segments, neighbours, given)
    closed = quick_jit(functools.partial(run, model, gate=0))(params, tokens, segments, None, given)
  state = megatron.state_dict(config, params, CORE)
  rotary_width = int(decoder.head_width * decoder.rotary_fraction)
  twin = Megatron(
    state,
    heads=2,
    activation=decoder.activation,
    rotary_width=rotary_width,
    chunk_len=C,
    retro_layers=config.retro_layers,
  )
  for b in range(B):
    shape = (N, num_neighbours, 2 * C, 2 * C)
    forbidden = None
    if encoder_mask is not None:
      forbidden = ~np.broadcast_to(encoder_mask, (B, *shape))[b]
    call = functools.partial(
      twin.logits,
      tokens[b],
      positions[b],
      ~allowed[b],
      num_layers=decoder.num_layers,
      residual='normed',
    )
    assert_close(found[b], call(neighbours[b], forbidden), 1e-10)
    assert_close(closed[b], call(None, None), 1e-10)

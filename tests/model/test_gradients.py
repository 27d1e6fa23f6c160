"""Gradients written by hand against autodiff of the plain form, in float64, at the edges."""

import dataclasses
import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructretro_jax.model import attention, kernels, layers
from instructretro_jax.model.execution import Execution
from instructretro_jax.model.retro import Retro
from instructretro_jax.train import losses
from tests.model.test_retro import CONFIG, init, make_inputs


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape)


def assert_same_gradients(function, plain, *arguments, atol=1e-12):
  """Value and vector-Jacobian product of both; atol is relative to the largest entry."""

  @functools.partial(jax.jit, static_argnums=0)
  def value_and_grads(function, weights, *arguments):
    value, backward = jax.vjp(function, *arguments)
    return value, *backward(weights)

  weights = normal(*jax.eval_shape(plain, *arguments).shape, seed=1)
  found, expected = (value_and_grads(f, weights, *arguments) for f in (function, plain))
  for a, b in zip(found, expected, strict=True):
    assert a.dtype == b.dtype == np.float64
    np.testing.assert_allclose(a, b, rtol=0, atol=atol * max(1, np.abs(b).max()))


def plain_scores(q_BGITA, k_BGUA):
  return jnp.einsum('bgita,bgua->bgitu', q_BGITA, k_BGUA)


def plain_read(scores_BGITU, v_BGUA):
  return jnp.einsum('bgitu,bgua->bgita', jax.nn.softmax(scores_BGITU), v_BGUA)


def plain_attend(q_BTHA, k_BUGA, v_BUGA, mask=None, bias=None):
  """`kernels.attend` with each head's own keys, and nothing by hand."""
  shared = q_BTHA.shape[2] // k_BUGA.shape[2]
  k_BUHA, v_BUHA = (jnp.repeat(x, shared, axis=2) for x in (k_BUGA, v_BUGA))
  scores_BHTU = jnp.einsum('btha,buha->bhtu', q_BTHA, k_BUHA) / q_BTHA.shape[-1] ** 0.5
  scores_BHTU = scores_BHTU if bias is None else scores_BHTU + bias
  if mask is not None:
    scores_BHTU = jnp.where(mask, scores_BHTU, jnp.finfo(scores_BHTU.dtype).min)
  return jnp.einsum('bhtu,buha->btha', jax.nn.softmax(scores_BHTU), v_BUHA)


SHAPES = {'odd': (3, 5), 'one query': (1, 5), 'one key': (3, 1)}  # T, U
SCALES = {'usual': 1.0, 'large': 1e4, 'ties': 0.0}


@pytest.mark.parametrize('length, num_keys', SHAPES.values(), ids=SHAPES)
def test_products_of_queries_and_keys(length, num_keys):
  q, k = normal(2, 2, 3, length, 4), normal(2, 2, num_keys, 4)
  assert_same_gradients(kernels._scores, plain_scores, q, k)


@pytest.mark.parametrize('scale', SCALES.values(), ids=SCALES)
@pytest.mark.parametrize('length, num_keys', SHAPES.values(), ids=SHAPES)
def test_mean_by_softmax(length, num_keys, scale):
  scores, v = scale * normal(2, 2, 3, length, num_keys), normal(2, 2, num_keys, 4)
  assert_same_gradients(kernels._read, plain_read, scores, v)


@pytest.mark.parametrize('shape', [(2, 4, 3, 5), (2, 1, 1, 5), (1, 1, 3, 5), (1, 1, 1, 1)])
def test_hidden_scores(shape):
  mask = normal(*shape) > 0
  plain = lambda scores: jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
  hide = lambda scores: kernels._hide(scores, mask)
  assert_same_gradients(hide, plain, normal(2, 4, 3, 5))


@pytest.mark.parametrize('scale', SCALES.values(), ids=SCALES)
@pytest.mark.parametrize('length, num_keys', SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize('may_attend', ['all', 'some', 'nothing'])
def test_attention(may_attend, length, num_keys, scale):
  mask = {
    'all': None,
    'some': (normal(2, 1, length, num_keys) > 0) & (np.arange(length) != 1)[:, None],
    'nothing': np.zeros((2, 1, 1, num_keys), bool),
  }[may_attend]
  q, k, v = scale * normal(2, length, 4, 6), normal(2, num_keys, 2, 6), normal(2, num_keys, 2, 6)
  bias = normal(1, 4, length, num_keys)
  attend, plain = (
    lambda q, k, v, bias, attend=attend: attend(q, k, v, mask, bias)
    for attend in (kernels.attend, plain_attend)
  )
  # rounding in the gradient of a score, times a query
  assert_same_gradients(attend, plain, q, k, v, bias, atol=1e-12 * max(1, scale))


@pytest.mark.parametrize('with_segments', [False, True])
@pytest.mark.parametrize('length', [1, 128, 131, 512])
def test_causal_attention(length, with_segments):
  segments = np.sort(np.random.default_rng(0).integers(0, 4, (2, length)))
  segments = segments if with_segments else None
  mask = kernels.causal_mask(segments, length)
  q, k, v = normal(2, length, 2, 2), normal(2, length, 1, 2), normal(2, length, 1, 2, seed=1)
  in_blocks = lambda q, k, v: kernels.attend_causally(q, k, v, segments, 'dot_product')
  assert_same_gradients(in_blocks, lambda q, k, v: plain_attend(q, k, v, mask), q, k, v)


@pytest.mark.parametrize('num_rows, width, features', [(7, 3, 5), (1, 1, 1), (1, 4, 2)])
def test_linear_map(num_rows, width, features):
  x, kernel = normal(num_rows, width), normal(width, features)
  assert_same_gradients(layers._product, lambda x, kernel: x @ kernel, x, kernel)


WEIGHTS = {'some': np.arange(14) % 3, 'none': np.zeros(14), 'one': np.arange(14) == 13}


@pytest.mark.parametrize('scale', SCALES.values(), ids=SCALES)
@pytest.mark.parametrize('weights', WEIGHTS.values(), ids=WEIGHTS)
def test_loss(monkeypatch, weights, scale):
  monkeypatch.setattr(losses, '_BLOCK_TOKENS', 6)
  targets = np.random.default_rng(0).integers(0, 5, (2, 7))
  weights = weights.reshape(2, 7).astype(float)

  def plain(hidden, head):
    logp = jax.nn.log_softmax(hidden @ head)
    return -(jnp.take_along_axis(logp, targets[..., None], -1)[..., 0] * weights).sum()

  by_hand = lambda hidden, head: losses.total_loss(hidden, head, targets, weights)
  assert_same_gradients(by_hand, plain, scale * normal(2, 7, 3), normal(3, 5))


@pytest.mark.parametrize('masked', [False, True], ids=['encoder_mask', 'neighbour_mask'])
def test_a_neighbour_whose_tokens_may_attend_nothing(monkeypatch, masked):
  """All parameters; in parity mode such a neighbour reads plain means, and is read itself."""
  tokens, segments, neighbours, mask = make_inputs(length=13)
  mask[0, 1, 1] = mask[1, 2] = False
  config = dataclasses.replace(
    CONFIG,
    decoder=dataclasses.replace(CONFIG.decoder, num_layers=1),
    encoder_layers=1,
    cross_attention_layers=(0,),
    mask_neighbours=masked,
  )
  params = init(config, (tokens, segments, neighbours, mask))
  params = jax.tree.map(lambda x: x.astype(float), params)
  hides = dict(encoder_mask_BNKRR=mask[:, :, :, None])
  hides = dict(neighbour_mask_BNKR=mask) if masked else hides
  targets, weights = np.roll(tokens, -1, 1), (normal(2, 13) > 0).astype(float)

  def hidden_and_head(params):
    return Retro(config, Execution(dtype='float64')).apply(
      {'params': params}, tokens, segments, neighbours, **hides, method='hidden_and_head'
    )

  def plain_loss(params):
    logp = jax.nn.log_softmax(jnp.matmul(*hidden_and_head(params)))
    return -(jnp.take_along_axis(logp, targets[..., None], -1)[..., 0] * weights).sum()

  loss = lambda params: losses.total_loss(*hidden_and_head(params), targets, weights)
  found = jax.jit(jax.grad(loss))(params)
  causally = lambda q, k, v, segments, _: plain_attend(
    q, k, v, kernels.causal_mask(segments, q.shape[1])
  )
  monkeypatch.setattr(attention, 'attend', plain_attend)
  monkeypatch.setattr(attention, 'attend_causally', causally)
  monkeypatch.setattr(layers, '_product', jnp.matmul)
  expected = traverse_util.flatten_dict(jax.jit(jax.grad(plain_loss))(params), sep='/')
  for path, grad in traverse_util.flatten_dict(found, sep='/').items():
    largest = np.abs(expected[path]).max()
    assert largest > 0, path
    np.testing.assert_allclose(grad, expected[path], rtol=0, atol=1e-9 * largest, err_msg=path)

"""Groups of parameters: rates, freezing, decay."""

import re

from flax import linen as nn
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.model.layer_groups import stack_layers, unstack_layers
from instructretro_jax.model.param_groups import fits
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.train.multipliers import (
  check_multipliers,
  factors_of,
  join_params,
  lr_multiplier,
  split_trainable,
)
from instructretro_jax.train.optimizer import AdamW, FromOptax, is_decayed
from instructretro_jax.train.state import init_params

PARAMS = {
  'decoder_0': {'mlp': {'kernel': jnp.ones((2, 2)), 'norm': {'scale': jnp.ones(2)}}},
  'encoder': {'kernel': jnp.ones((2, 2))},
}
RATES = (('encoder', 2.0), ('norm', 0.0))


def test_first_pattern_wins():
  assert lr_multiplier('encoder/norm', RATES) == 2.0
  assert lr_multiplier('decoder_0/mlp/norm', RATES) == 0.0
  assert lr_multiplier('decoder_0/mlp/kernel', RATES) == 1.0


def test_frozen_parameters_have_no_state_and_come_back():
  trainable, frozen = split_trainable(PARAMS, RATES)
  assert set(frozen) == {'decoder_0/mlp/norm/scale'}
  config = AdamW(learning_rate=0.1, lr_multipliers=RATES)
  state = config.make(10, trainable).init(trainable)
  sizes = [x.size for x in jax.tree.leaves(state)]
  assert sum(sizes) == 2 * 8 + 2  # two moments of the two kernels, and two counters
  assert jax.tree.structure(join_params(trainable, frozen)) == jax.tree.structure(PARAMS)


def test_rates_scale_updates_and_norms_do_not_decay():
  config = AdamW(
    learning_rate=0.1, lr_multipliers=(('encoder', 2.0),), warmup_fraction=0.0, weight_decay=0.5
  )
  trainable, _ = split_trainable(PARAMS, config.lr_multipliers)
  optimizer = config.make(10, trainable)
  state = optimizer.init(trainable)
  zeros = jax.tree.map(jnp.zeros_like, trainable)
  for _ in range(2):
    updates, state = optimizer.update(zeros, state, trainable)
  updated = optax.apply_updates(trainable, updates)
  np.testing.assert_array_equal(
    updated['decoder_0/mlp/norm/scale'], trainable['decoder_0/mlp/norm/scale']
  )
  moved = {path: float(1 - x[0, 0]) for path, x in updated.items() if x.ndim == 2}
  assert moved['decoder_0/mlp/kernel'] > 0
  assert moved['encoder/kernel'] == pytest.approx(2 * moved['decoder_0/mlp/kernel'], rel=1e-4)


def test_what_decays_is_told_by_name_so_that_stacked_norms_do_not():
  decayed = ('decoder_0/mlp/up/kernel', 'head', 'decoder_1/cross_attention/query/kernel')
  kept = ('decoder_0/mlp/norm/scale', 'decoder_0/mlp/up/bias', 'embedding/table')
  kept += ('encoder/layer_0/relative_bias/table',)  # a bias in RETRO and T5
  assert all(is_decayed(path) for path in decayed)
  assert not any(is_decayed(path) for path in kept)


def test_narrow_moments_that_are_taken_follow_gradients_that_fall():
  """Of a gradient of 1, then 0.01, the update is within the 5 % that the bound allows."""
  sizes = {}
  for dtype in ('float32', 'bfloat16'):
    config = AdamW(learning_rate=1.0, b2=0.96, moments_dtype=dtype, clip_norm=1e9)
    adam = config.transforms({'kernel': jnp.ones(1)})[0]

    def step(state, gradient, adam=adam):
      updates, state = adam.update({'kernel': gradient[None]}, state)
      return state, updates['kernel'][0]

    gradients = jnp.concatenate([jnp.ones(200), jnp.full(1000, 0.01)])
    sizes[dtype] = jax.lax.scan(step, adam.init({'kernel': jnp.ones(1)}), gradients)[1][-1]
  assert float(sizes['bfloat16'] / sizes['float32']) == pytest.approx(1, abs=0.05)


def test_narrow_moments_are_close_and_narrow():
  states, params = {}, {}
  for dtype in ('float32', 'bfloat16'):
    config = AdamW(learning_rate=0.01, moments_dtype=dtype)
    params[dtype] = {'kernel': jnp.linspace(-1, 1, 64)}
    optimizer = config.make(20, params[dtype])
    states[dtype] = optimizer.init(params[dtype])
    for n in range(10):
      grads = {'kernel': jnp.sin(params[dtype]['kernel'] * (n + 1))}
      updates, states[dtype] = optimizer.update(grads, states[dtype], params[dtype])
      params[dtype] = optax.apply_updates(params[dtype], updates)
  dtypes = lambda name: {x.dtype.name for x in jax.tree.leaves(states[name]) if x.ndim}
  assert dtypes('bfloat16') == {'bfloat16'} and dtypes('float32') == {'float32'}
  np.testing.assert_allclose(params['bfloat16']['kernel'], params['float32']['kernel'], atol=2e-3)
  assert not np.array_equal(params['bfloat16']['kernel'], params['float32']['kernel'])


def test_freezing_everything_is_refused():
  with pytest.raises(StageError, match='freeze every parameter'):
    split_trainable(PARAMS, (('', 0.0),))


def test_any_factory_of_optax_by_its_name():
  named = FromOptax(
    learning_rate=0.1, factory='optax.scale_by_lion', arguments=(('b1', 0.8),), warmup_fraction=0.0
  )
  path = 'decoder_0/mlp/up/kernel'
  trainable = {path: jnp.ones(3)}
  optimizer = named.make(4, trainable)
  updates, _ = optimizer.update(
    {path: jnp.array([1.0, -2.0, 3.0])}, optimizer.init(trainable), trainable
  )
  np.testing.assert_allclose(updates[path], [-0.1, 0.1, -0.1], rtol=1e-6)
  with pytest.raises(ValueError, match='optax.scale_by_nothing'):
    FromOptax(learning_rate=0.1, factory='optax.scale_by_nothing')
  with pytest.raises(ValueError, match='no optax.GradientTransformation'):
    FromOptax(learning_rate=0.1, factory='optax.constant_schedule', arguments=(('value', 1.0),))


def test_a_group_by_its_name_freezes_encoder_and_cross_attention():
  adam = AdamW(learning_rate=0.1, lr_multipliers=(('mlp', 2.0),))
  frozen = adam.with_multiplier('retrieval', 0.0)
  assert frozen.lr_multipliers == (('retrieval', 0.0), ('mlp', 2.0))
  assert frozen.with_multiplier('retrieval', 0.0) == frozen
  for path in ('encoder/layer_0/mlp/up/kernel', 'decoder_1/cross_attention/norm/scale'):
    assert lr_multiplier(path, frozen.lr_multipliers) == 0
  assert lr_multiplier('decoder_1/mlp/up/kernel', frozen.lr_multipliers) == 2


@pytest.mark.parametrize('group', ['decodr', 'embeding', '^mlp', 'decoder_9/'])
def test_a_group_without_a_parameter_is_refused_with_near_paths(group):
  with pytest.raises(StageError, match=f"the group '{re.escape(group)}'.*paths such as"):
    split_trainable(PARAMS, ((group, 0.0),))


def test_a_misspelt_group_is_answered_with_what_is_near():
  with pytest.raises(StageError, match='encoder/kernel'):
    split_trainable(PARAMS, (('encodr', 0.0),))


@pytest.mark.parametrize(
  'wrong',
  [
    {'lr_multipliers': (('(', 0.0),)},
    {'lr_multipliers': (('encoder', -1.0),)},
    {'lr_multipliers': (('encoder', float('nan')),)},
    {'warmup_fraction': 1.5},
    {'final_lr_fraction': -0.1},
    {'decay_fraction': float('nan')},
    {'warmup_fraction': 0.5, 'decay_fraction': 0.2},
    {'cooldown_fraction': 1.5},
    {'cooldown_fraction': 0.9, 'warmup_fraction': 0.2, 'lr_schedule': 'wsd'},
    {'lr_schedule': 'step'},
    {'moments_dtype': 'float16'},
    {'b2': 1.0},
    {'b2': 0.98, 'moments_dtype': 'bfloat16'},
    {'b1': 0.99, 'moments_dtype': 'bfloat16'},
    {'clip_norm': 0.0},
    {'learning_rate': float('inf')},
  ],
)
def test_impossible_fields_are_refused(wrong):
  with pytest.raises(ValueError, match=next(iter(wrong))):
    AdamW(**{'learning_rate': 0.1} | wrong)


@pytest.mark.parametrize(
  'group', ['decoder_[0-3]/', 'decoder_7/', 'decoder_2/mlp', 'mlp', 'retrieval', 'embeddings']
)
def test_layers_that_are_stacked_are_frozen_as_they_are_one_by_one(group):
  config = RetroConfig(
    decoder=DecoderConfig(vocab_size=16, num_layers=8, width=8, num_heads=2, ff_width=8),
    cross_attention_layers=(1, 3, 5, 7),
    chunk_len=4,
  )
  single = nn.unbox(init_params(config, 0, True))
  moved = {}
  for is_scanned in (False, True):
    params = stack_layers(single, config) if is_scanned else single
    adam = AdamW(
      learning_rate=0.1, clip_norm=0.1, lr_multipliers=((group, 0.0), ('decoder_4/', 3.0))
    )
    trainable, frozen = split_trainable(params, adam.lr_multipliers)
    optimizer = adam.make(2, trainable)
    state, ones = optimizer.init(trainable), jax.tree.map(jnp.ones_like, trainable)
    for _ in range(2):
      updates, state = optimizer.update(ones, state, trainable)
    after = join_params(optax.apply_updates(trainable, updates), frozen)
    after = unstack_layers(after, config) if is_scanned else after
    flat, before = (traverse_util.flatten_dict(x, sep='/') for x in (after, single))
    moved[is_scanned] = {path: np.asarray(flat[path] - before[path]) for path in before}
  for path, change in moved[False].items():
    np.testing.assert_allclose(change, moved[True][path], rtol=1e-5, atol=1e-7, err_msg=path)
    assert bool(np.any(change)) != fits(group, path), path


PATHS = ['embedding/table', 'decoder_0/mlp/up/kernel', 'decoder_10/self_attention/norm/scale']
WORDS = ['decoder', '_', '/', '[0-4]', '1', 'mlp', 'norm', '$', 'retrieval', 'up/kernel', '^', '.*']


@settings(max_examples=200, deadline=None, derandomize=True)
@given(parts=st.lists(st.sampled_from(WORDS), min_size=1, max_size=4), layers=st.integers(2, 9))
def test_a_group_is_of_the_same_layers_stacked_or_not(parts, layers):
  multipliers = ((''.join(parts), 0.5),)
  try:
    check_multipliers(multipliers)
  except ValueError:
    return
  for path in PATHS:
    assert factors_of(path, jnp.ones(2), multipliers) == lr_multiplier(path, multipliers)
  stacked = np.broadcast_to(
    factors_of(f'decoder_1_to_{layers}/layer_0/mlp/up/kernel', np.ones((layers, 1)), multipliers),
    (layers, 1),
  )
  single = [lr_multiplier(f'decoder_{n}/mlp/up/kernel', multipliers) for n in range(1, layers + 1)]
  assert stacked[:, 0].tolist() == single

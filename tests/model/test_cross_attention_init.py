"""Starting from a GPT, and the starts of the cross-attention."""

import dataclasses

from flax import linen as nn
import jax
import numpy as np
import pytest

from instructretro_jax.model.cross_attention_init import (
  CrossAttentionInit,
  fit_from_gpt,
  init_cross_attention,
)
from instructretro_jax.model.retro import Retro
from tests.model.test_retro import CONFIG, init, logits, make_inputs


@pytest.fixture
def gpt_and_retro():
  inputs = make_inputs()
  gpt = init(CONFIG, inputs[:2], gate=0)
  retro = nn.unbox(Retro(CONFIG).init(jax.random.key(7), *inputs))['params']
  return inputs, gpt, fit_from_gpt(gpt, retro)


def test_gate_0_equals_the_gpt_exactly(gpt_and_retro):
  inputs, gpt, fitted = gpt_and_retro
  expected = logits(CONFIG, gpt, *inputs[:2], gate=0)
  np.testing.assert_array_equal(logits(CONFIG, fitted, *inputs, gate=0), expected)
  assert np.abs(logits(CONFIG, fitted, *inputs) - expected).max() > 0.01


def test_norm_before_the_cross_attention_is_the_one_before_the_mlp(gpt_and_retro):
  _, gpt, fitted = gpt_and_retro
  for n in (0, 2):
    copied = fitted[f'decoder_{n}']['cross_attention']['norm']['scale']
    np.testing.assert_array_equal(copied, gpt[f'decoder_{n}']['mlp']['norm']['scale'])


def test_a_norm_of_outputs_is_not_copied():
  decoder = dataclasses.replace(CONFIG.decoder, norm_placement='output')
  config = dataclasses.replace(CONFIG, decoder=decoder)
  inputs = make_inputs()
  gpt, retro = init(config, inputs[:2], gate=0), init(config, inputs)
  assert set(gpt['decoder_0']['mlp']) == {'up', 'down', 'output_norm'}
  fitted = fit_from_gpt(gpt, retro)['decoder_0']
  own = retro['decoder_0']['cross_attention']['norm']['scale']
  np.testing.assert_array_equal(fitted['cross_attention']['norm']['scale'], own)
  given = gpt['decoder_0']['mlp']['output_norm']['scale']
  np.testing.assert_array_equal(fitted['mlp']['output_norm']['scale'], given)


def test_zero_output_makes_gate_1_equal_the_gpt(gpt_and_retro):
  inputs, gpt, fitted = gpt_and_retro
  started = init_cross_attention(fitted, CrossAttentionInit(kind='zero_output'))
  expected = logits(CONFIG, gpt, *inputs[:2], gate=0)
  np.testing.assert_allclose(logits(CONFIG, started, *inputs), expected, atol=1e-5)


def test_copy_ready_projections(gpt_and_retro):
  _, _, fitted = gpt_and_retro
  started = init_cross_attention(
    fitted, CrossAttentionInit(kind='copy_ready', output_scale=0.25, match_scale=1.5)
  )
  a = started['decoder_2']['cross_attention']['attention']
  for h in range(2):
    np.testing.assert_allclose(a['output']['kernel'][h], 0.25 * a['value']['kernel'][:, h].T)
  bias = np.asarray(started['encoder']['layer_0']['relative_bias']['table'])
  assert bias[0, 31] == 8 and bias[1, 31] == 0  # half of the heads look one token back
  assert np.count_nonzero(bias) == 1
  # the query looks for what those heads write of its own token
  back = started['encoder']['layer_0']['attention']
  written = np.asarray(back['value']['kernel'][:, 0] @ back['output']['kernel'][0])
  expected = 1.5 * np.einsum('de,eha->dha', written, a['key']['kernel'])
  np.testing.assert_allclose(a['query']['kernel'], expected, atol=1e-5)


def test_a_gpt_that_does_not_fit_is_named(gpt_and_retro):
  _, gpt, fitted = gpt_and_retro
  with pytest.raises(ValueError, match='stranger'):
    fit_from_gpt({**gpt, 'stranger': {'kernel': np.zeros(1)}}, fitted)
  with pytest.raises(ValueError, match='start must be one of'):
    CrossAttentionInit(kind='warm')

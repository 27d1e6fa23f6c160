"""Likelihood of continuations against full forward passes and greedy decoding."""

import numpy as np

from instructretro_jax.inference.decode import left_pad
from instructretro_jax.inference.likelihood import compile_likelihood, pad_options
from instructretro_jax.model.retro import Retro
from tests.inference.greedy import make_decoder
from tests.inference.test_cache import params_of
from tests.inference.test_decode import CONFIG
from tests.model.test_retro import logits

C, K, R = 4, 2, 8
PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3, 5, 8, 9, 7]]
OPTIONS = [[[7], [8, 30, 2, 6, 11, 4]], [[1, 2, 3], [4, 5]]]


def test_closed_gate_equals_the_full_forward_pass():
  params = params_of(CONFIG)
  inputs = left_pad(PROMPTS, 12)
  found = np.asarray(compile_likelihood(Retro(CONFIG))(params, *inputs, *pad_options(OPTIONS)))
  assert found.shape == (2, 2)
  for row, prompt, options in zip(found, PROMPTS, OPTIONS):
    for nats, option in zip(row, options):
      tokens = np.array([prompt + option])
      whole = np.pad(tokens, ((0, 0), (0, -tokens.shape[1] % C)))
      scores = logits(CONFIG, params, whole, np.ones_like(whole), gate=0)[0].astype(np.float64)
      scores -= np.log(np.exp(scores).sum(axis=-1, keepdims=True))
      places = np.arange(len(prompt) - 1, tokens.shape[1] - 1)
      np.testing.assert_allclose(nats, scores[places, option].sum(), rtol=1e-5)


def test_open_gate_prefers_what_greedy_decoding_writes():
  params, rng = params_of(CONFIG), np.random.default_rng(0)
  windows = rng.integers(0, 32, (2, K, R)), np.ones((2, K, R), bool)
  decode = make_decoder(Retro(CONFIG), prompt_len=12, num_new=1, eos_id=31)
  best = decode(params, PROMPTS, *windows, gate=1.0)[:, 0]
  chunks = [np.broadcast_to(x[:, None], (2, 3, K, R)) for x in windows]
  every = pad_options([[[token] for token in range(32)]] * 2)
  run, inputs = compile_likelihood(Retro(CONFIG)), left_pad(PROMPTS, 12)
  opened = np.asarray(run(params, *inputs, *every, *chunks, np.float32(1)))
  assert opened.argmax(axis=1).tolist() == best.tolist()
  np.testing.assert_allclose(np.exp(opened).sum(axis=1), 1, rtol=1e-5)
  assert abs(opened - np.asarray(run(params, *inputs, *every))).max() > 1e-3


def test_missing_options_have_no_weight():
  tokens, lengths = pad_options([[[1, 2]], [[3], [4]]])
  assert tokens.shape == (2, 2, 2) and lengths.tolist() == [[2, 0], [1, 1]]

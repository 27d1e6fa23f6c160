"""Greedy decoding against asking for one token at a time."""

import jax.numpy as jnp
import numpy as np
import pytest

from instructretro_jax.inference.decode import left_pad, make_greedy_decoder
from instructretro_jax.model.retro import Retro
from tests.model.test_retro import CONFIG, init, logits, make_inputs

EOS = 31


def test_equals_one_token_at_a_time_alone_and_in_a_batch():
  params = init(CONFIG, make_inputs())
  rng = np.random.default_rng(0)
  prompts = [rng.integers(0, 31, n).tolist() for n in (8, 3, 5)]
  neighbours, mask = rng.integers(0, 32, (3, 2, 8)), np.ones((3, 2, 8), bool)
  decode = make_greedy_decoder(Retro(CONFIG), 8, 3, EOS, gate=1.0)
  lengths = np.array([len(p) for p in prompts])
  found = np.asarray(decode(params, left_pad(prompts, 8, 0), lengths, neighbours, mask))
  for b, prompt in enumerate(prompts):
    one = slice(b, b + 1)
    alone = decode(params, left_pad([prompt], 8, 0), lengths[one], neighbours[one], mask[one])
    np.testing.assert_array_equal(alone[0], found[b])
    row = [0] * (8 - len(prompt)) + prompt
    for n in range(3):
      padded = np.array([row + [0] * (12 - len(row))])
      segments = (np.arange(12) >= 8 - len(prompt)).astype(np.int32)[None]
      spread = lambda x: np.broadcast_to(x[one][:, None], (1, 3, 2, 8))
      scores = logits(CONFIG, params, padded, segments, spread(neighbours), spread(mask))
      row.append(int(scores[0, 8 + n - 1].argmax()))
      if row[-1] == EOS:
        break
    generated = row[8:]
    assert found[b].tolist() == generated + [EOS] * (3 - len(generated))


def test_nothing_follows_the_end():
  inputs = make_inputs()
  params = init(CONFIG, inputs[:2], gate=0)
  table = jnp.zeros_like(params['embedding']['table']).at[5].set(100.0)
  params['embedding']['table'] = table
  decode = make_greedy_decoder(Retro(CONFIG), 4, 4, eos_id=5, gate=0)
  found = np.asarray(decode(params, left_pad([[5, 5]], 4, 0), np.array([2])))
  assert set(found[0].tolist()) <= {0, 5}
  if found[0, 0] == 5:
    assert (found[0] == 5).all()


def test_lengths_are_checked():
  with pytest.raises(ValueError, match='prompts of 6 and 3 new tokens do not fit chunks of 4'):
    make_greedy_decoder(Retro(CONFIG), 6, 3, EOS, gate=0)
  with pytest.raises(ValueError, match='9 tokens, more than 8'):
    left_pad([[1] * 9], 8, 0)

"""Gains of an answer, against scores of the whole text and against decoding."""

import dataclasses

import jax
import numpy as np
import pytest

from instructretro_jax.inference import decode as decoding
from instructretro_jax.inference import score as scoring
from instructretro_jax.inference.answer import Request
from instructretro_jax.inference.gain import token_gains
from instructretro_jax.inference.sampling import choose
from tests.inference.test_decode import CONFIG
from tests.inference.test_sampler import Echo, make_sampler


def gains_of(sampler, request):
  (answer,) = sampler.generate([request])
  pieces, gains = zip(*token_gains(sampler, request, answer))
  assert ''.join(pieces) == answer.text and len(pieces) == len(answer.tokens)
  return answer, np.array(gains)


@pytest.mark.parametrize('num_new, positions', [(3, 'rotary'), (11, 'rotary'), (11, 'learned')])
def test_after_a_prompt_of_whole_chunks_gains_are_those_of_the_text(num_new, positions):
  decoder = dataclasses.replace(CONFIG.decoder, positions=positions, max_len=20)
  config = dataclasses.replace(CONFIG, decoder=decoder)
  sampler = make_sampler(config, retriever=Echo())
  request = Request(prompt='BCDFGHIJ', max_new=num_new, gate=0.7)
  answer, gains = gains_of(sampler, request)
  whole = scoring.score(sampler, request.prompt + answer.text, request.gate)
  expected = np.subtract(whole.opened[8:], whole.closed[8:])
  np.testing.assert_allclose(gains, expected, atol=1e-5)
  assert np.abs(gains).max() > 1e-3


@pytest.mark.parametrize('prompt', ['B', 'BCDFGHIJKLM'])
@pytest.mark.parametrize('neighbours', [(), ('KLMNOPQ', 'RST', 'UVW')])
def test_gains_are_those_of_decoding(prompt, neighbours, monkeypatch):
  seen = []

  def choose_and_tell(logits_BV, *args):
    jax.debug.callback(lambda x: seen.append(np.asarray(x)[0]), logits_BV, ordered=True)
    return choose(logits_BV, *args)

  monkeypatch.setattr(decoding, 'choose', choose_and_tell)
  sampler = make_sampler(retriever=None if neighbours else Echo())
  request = Request(prompt=prompt, max_new=7, gate=1.0, neighbours=neighbours)
  answer, gains = gains_of(sampler, request)
  jax.effects_barrier()
  logits_TV = np.array(seen[: len(answer.tokens)], np.float64)
  nats_TV = logits_TV - np.log(np.exp(logits_TV).sum(axis=1, keepdims=True))
  opened = nats_TV[np.arange(len(answer.tokens)), answer.tokens]
  closed = scoring.score(sampler, prompt + answer.text).closed[len(prompt) :]
  np.testing.assert_allclose(gains, opened - np.array(closed), atol=1e-5)
  assert np.abs(gains).max() > 1e-3


def test_a_stop_text_has_no_piece():
  sampler = make_sampler(retriever=Echo())
  request = Request(prompt='QRSTU', max_new=9, gate=1.0, temperature=1.0, seed=9)
  (answer,) = sampler.generate([request])
  stopping = dataclasses.replace(request, stop=(answer.text[4:6],))
  (stopped,) = sampler.generate([stopping])
  pieces = [piece for piece, _ in token_gains(sampler, stopping, stopped)]
  assert stopped.finish == 'stop' and ''.join(pieces) == stopped.text
  assert len(pieces) == len(stopped.tokens) > len(stopped.text) and pieces[-1] == ''


def test_what_cannot_be_scored_is_refused():
  sampler = make_sampler(retriever=Echo())
  request = Request(prompt='BCD', max_new=2)
  (answer,) = sampler.generate([request])
  with pytest.raises(ValueError, match='gate of the request is 0'):
    token_gains(sampler, request, answer)
  few = dataclasses.replace(CONFIG.decoder, positions='learned', max_len=10)
  sampler = make_sampler(dataclasses.replace(CONFIG, decoder=few), retriever=Echo())
  opened = dataclasses.replace(request, prompt='BCDFGHI', gate=1.0)
  (answer,) = sampler.generate([opened])
  with pytest.raises(
    ValueError, match='7 tokens of prompt and 1 chunks of answer do not fit the 10'
  ):
    token_gains(sampler, opened, answer)

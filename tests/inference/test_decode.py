"""Batched decoding against the most likely tokens of full forward passes."""

import dataclasses

import jax
import numpy as np
import pytest

from instructretro_jax.inference import decode as decoding
from instructretro_jax.inference.decode import DecodingLoop, left_pad, without_retrieval
from instructretro_jax.inference.sampling import Sampling, choose
from instructretro_jax.model.retro import Retro
from tests.inference.greedy import make_decoder
from tests.inference.test_cache import params_of
from tests.model.test_retro import CONFIG as TIED_CONFIG
from tests.model.test_retro import logits

EOS = 31
# without tied embeddings the random model says more than one word
CONFIG = dataclasses.replace(
  TIED_CONFIG, decoder=dataclasses.replace(TIED_CONFIG.decoder, tie_embeddings=False)
)


def best_tokens(config, params, tokens, neighbours_KR):
  """The most likely token after each one of a sequence, by a full forward pass."""
  tokens = np.array([tokens])
  shape = (1, -(-tokens.shape[1] // config.chunk_len), *neighbours_KR.shape)
  neighbours = np.broadcast_to(neighbours_KR, shape)
  inputs = (tokens, np.ones_like(tokens), neighbours, np.ones(shape, bool))
  return logits(config, params, *inputs)[0].argmax(axis=-1).tolist()


def test_equals_the_full_forward_alone_and_in_a_batch_and_compiles_once(monkeypatch):
  params, traced = params_of(CONFIG), []
  monkeypatch.setattr(decoding, 'choose', lambda *args: traced.append(1) or choose(*args))
  rng = np.random.default_rng(3)
  prompts = [rng.integers(0, 31, n).tolist() for n in (6, 2)]
  neighbours, mask = rng.integers(0, 32, (2, 2, 8)), np.ones((2, 2, 8), bool)
  num_new = 8
  decode = make_decoder(Retro(CONFIG), prompt_len=6, num_new=num_new, eos_id=EOS)
  found = decode(params, prompts, neighbours, mask)
  assert all(len(set(row.tolist()) - {EOS}) > 1 for row in found)
  for b, prompt in enumerate(prompts):
    alone = decode(params, [prompt], neighbours[b][None], mask[b][None])
    np.testing.assert_array_equal(alone[0], found[b])
    chunk_behind = [0] * (6 - len(prompt))  # not read, so that both rows compile once
    tokens = prompt + found[b].tolist() + chunk_behind
    best = best_tokens(CONFIG, params, tokens, neighbours[b])
    best = best[len(prompt) - 1 :][:num_new]
    end = best.index(EOS) if EOS in best else num_new
    assert found[b].tolist() == best[:end] + [EOS] * (num_new - end)
  # another gate compiles nothing; a closed one once, with or without retrieval parameters
  count = len(traced)
  decode(params, prompts[:1], neighbours[:1], mask[:1], gate=0.5)
  assert len(traced) == count
  closed, count = decode(params, prompts[:1], gate=0), len(traced)
  np.testing.assert_array_equal(decode(without_retrieval(params), prompts[:1], gate=0), closed)
  assert len(traced) == count


def test_goes_on_for_many_chunks_of_the_papers_length():
  config, params = dataclasses.replace(CONFIG, chunk_len=64), params_of(CONFIG)
  rng = np.random.default_rng(0)
  prompt, neighbours = rng.integers(0, 32, 64).tolist(), rng.integers(0, 32, (2, 128))
  decode = make_decoder(Retro(config), prompt_len=64, num_new=256, eos_id=-1)
  found = decode(params, [prompt], neighbours[None])[0].tolist()
  assert len(set(found)) > 3
  assert best_tokens(config, params, prompt + found, neighbours)[63:-1] == found


def test_stops_when_every_row_has_ended_and_repeats_the_end(monkeypatch):
  params, prompts, chosen = without_retrieval(params_of(CONFIG)), [[1, 2, 3], [4]], []

  def choose_of_three(logits_BV, *args):
    jax.debug.callback(lambda: chosen.append(1))
    return choose(logits_BV[:, :3], *args)

  monkeypatch.setattr(decoding, 'choose', choose_of_three)

  def run(eos_id):
    chosen.clear()
    decode = make_decoder(Retro(CONFIG), prompt_len=4, num_new=20, eos_id=eos_id)
    found = decode(params, prompts, gate=0).tolist()
    jax.effects_barrier()
    return found

  endless = run(eos_id=-1)
  assert len(chosen) == 20
  # a token that both rows choose, one sooner than the other
  firsts = {t: [row.index(t) for row in endless] for t in range(3) if all(t in r for r in endless)}
  eos_id, ends = next((t, ends) for t, ends in firsts.items() if ends[0] != ends[1])
  expected = [row[:end] + [eos_id] * (20 - end) for row, end in zip(endless, ends)]
  assert run(eos_id) == expected
  assert len(chosen) == max(ends) + 1 < 20


def test_lengths_are_checked():
  learned = dataclasses.replace(CONFIG.decoder, positions='learned', max_len=9)
  decode = make_decoder(
    Retro(dataclasses.replace(CONFIG, decoder=learned)), prompt_len=8, num_new=4, eos_id=EOS
  )
  with pytest.raises(ValueError, match='prompts of 6 and 4 new tokens do not fit the 9 learned'):
    decode({}, [[1] * 6], gate=0)
  for prompt in ([1] * 9, []):
    with pytest.raises(ValueError, match=f'{len(prompt)} tokens, not 1 to 8'):
      left_pad([prompt], 8)


def decode_in_calls(prompts, counts, sampling, num_new=9):
  params, decoder = params_of(CONFIG), DecodingLoop(Retro(CONFIG), end_ids=(-1,), tokens_per_call=4)
  rows = decoder.begin(params, *left_pad(prompts, 8), gate=0, max_new=num_new, sampling=sampling)
  found = [np.asarray(rows.token_B)[:, None]]
  for count in counts:
    rows, tokens = decoder.advance(params, rows, gate=0, count=count, sampling=sampling)
    found.append(np.asarray(tokens)[:, :count])
  return np.concatenate(found, axis=1).tolist()


def test_calls_of_any_length_give_the_same_tokens_and_draws_go_with_the_request():
  settings = {
    'seed': [5, 5, 6],
    'temperature': [1.5] * 3,
    'top_k': [20, 0, 0],
    'top_p': [1, 0.9, 1],
  }
  settings |= {'penalty': [1, 1.4, 1]}
  of = lambda rows: Sampling(**{f'{k}_B': np.array(v)[rows] for k, v in settings.items()})
  prompts = [[3, 4, 5], [9, 8, 7, 6, 5, 4], [3, 4, 5]]
  found = decode_in_calls(prompts, (4, 4), of([0, 1, 2]))
  assert decode_in_calls(prompts, (1, 3, 2, 2), of([0, 1, 2])) == found
  for b, prompt in enumerate(prompts):
    assert decode_in_calls([prompt], (4, 4), of([b])) == [found[b]]
  assert found[0] != found[2]  # another seed


def test_a_penalty_knows_the_tokens_of_prompt_and_answer():
  prompt, penalty = [[1, 2, 3]], Sampling(penalty_B=np.array([1e9]))
  found = decode_in_calls(prompt, (4, 4), penalty)[0]
  assert len(set(found)) == len(found) and not set(found) & {1, 2, 3}

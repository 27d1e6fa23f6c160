"""Scores of many texts against those of one by itself."""

import dataclasses

import numpy as np
import pytest

from instructretro_jax.inference import score as scoring
from instructretro_jax.inference import session
from instructretro_jax.inference.answer import Request
from instructretro_jax.inference.sampler import Sampler
from instructretro_jax.model.retro import Retro

TEXT = 'ape bee cat dog eel fox gnu hen ibis jay kite lynx ape cat eel gnu ibis '


def test_texts_are_scored_as_each_by_itself(run_with_arm):
  sampler, gate = session.open_sampler(run_with_arm / 'retro_fit', run_with_arm, None, batch_size=3)
  texts = [sampler.tokenize(text) for text in (TEXT, TEXT[4:], 'ape ' * 9, 'ab', TEXT[9:])]
  for scale in (None, gate):
    together = scoring.score_tokens(sampler, texts, scale)
    for tokens, found in zip(texts, together):
      alone = scoring.score(sampler, tokens)
      expected = alone.closed if scale is None else alone.opened
      np.testing.assert_allclose(found.nats, expected[1:], rtol=1e-4)
      assert len(found.is_likeliest) == len(tokens) - 1
  written = sampler.generate([Request(prompt=TEXT, max_new=4)])[0].tokens
  whole = [*texts[0], *written]
  found = scoring.score_tokens(sampler, [whole, [*whole[:-1], 3], [*texts[0], 3]])
  assert [row.is_likeliest[-1] for row in found] == [True, False, False]
  assert all(found[0].is_likeliest[-len(written) :])


def test_the_last_token_needs_no_room(run_with_arm):
  opened, _ = session.open_sampler(run_with_arm / 'imported', None, None)
  decoder = dataclasses.replace(opened.config.decoder, attention_window=20)
  config = dataclasses.replace(opened.config, decoder=decoder)
  sampler = Sampler(Retro(config), opened.params, opened.vocab)
  assert scoring.longest_scored(sampler) == 16  # whole chunks
  (found,) = scoring.score_tokens(sampler, [[5] * 17])
  assert len(found.nats) == 16
  with pytest.raises(ValueError, match='18 tokens do not fit the 20 tokens of its attention'):
    scoring.score_tokens(sampler, [[5] * 18])

"""Rotary positions with lowered frequencies, against loops from the papers' equations."""

import dataclasses
import math

import numpy as np
import pytest

from instructretro_jax.model.config import DecoderConfig, RetroConfig, decoder_differences
from instructretro_jax.model.rotary import apply_rotary
from instructretro_jax.model.rotary_scaling import LinearScaling, Llama3Scaling, YarnScaling
from instructretro_jax.pipeline import configuration

LLAMA3 = Llama3Scaling(factor=8.0)
YARN = YarnScaling(factor=4.0, original_max_len=4096)
SCALINGS = {'linear': LinearScaling(factor=4.0), 'llama3': LLAMA3, 'yarn': YARN}
BASE, WIDTH = 500_000.0, 64


def frequency(i):
  """Of pair i, as the authors of Llama 3.1 and YaRN write it for the two above."""
  return BASE ** (-2 * i / WIDTH)


def by_llama3(i):
  wavelength = 2 * math.pi / frequency(i)
  if wavelength < 8192 / 4:
    return frequency(i)
  if wavelength > 8192 / 1:
    return frequency(i) / 8
  smooth = (8192 / wavelength - 1) / (4 - 1)
  return (1 - smooth) * frequency(i) / 8 + smooth * frequency(i)


def by_yarn(i):
  index = lambda turns: WIDTH * math.log(4096 / (turns * 2 * math.pi)) / (2 * math.log(BASE))
  low, high = math.floor(index(32)), math.ceil(index(1))
  ramp = min(max((i - low) / (high - low), 0), 1)
  return frequency(i) / 4 * ramp + frequency(i) * (1 - ramp)


WRITTEN = {'linear': lambda i: frequency(i) / 4, 'llama3': by_llama3, 'yarn': by_yarn}


@pytest.mark.parametrize('kind', SCALINGS)
def test_rotates_by_the_frequencies_of_the_paper(kind):
  rng = np.random.default_rng(0)
  positions = np.array([0, 3, 700])
  x = rng.normal(size=(1, 3, 1, WIDTH)).astype(np.float32)
  scaling = SCALINGS[kind]
  found = np.asarray(apply_rotary(x, positions, base=BASE, scaling=scaling))
  raised = 0.1 * math.log(4) + 1 if kind == 'yarn' else 1
  plain = 0
  for t, position in enumerate(positions):
    for i in range(WIDTH // 2):
      a, b = (float(x[0, t, 0, j]) for j in (i, i + WIDTH // 2))
      angle = position * WRITTEN[kind](i)
      plain += WRITTEN[kind](i) == frequency(i)
      turned = (
        a * math.cos(angle) - b * math.sin(angle),
        b * math.cos(angle) + a * math.sin(angle),
      )
      got = found[0, t, 0, [i, i + WIDTH // 2]]
      np.testing.assert_allclose(got, raised * np.array(turned), atol=2e-4)
  assert (plain > 0) == (kind != 'linear')  # the fastest are kept


def test_a_scaling_is_part_of_what_a_decoder_is():
  decoder = DecoderConfig(vocab_size=8, num_layers=1, width=8, num_heads=1, ff_width=8)
  for scaling in SCALINGS.values():
    scaled = dataclasses.replace(decoder, rotary_scaling=scaling)
    (difference,) = decoder_differences(scaled, decoder)
    assert difference.startswith(f'rotary_scaling is {scaling!r} there and None here')
    again = configuration.from_json(DecoderConfig, configuration.to_json(scaled))
    assert again == scaled
  # neighbours are no longer than at first: neither their encoder nor cross-attention is scaled
  retro = RetroConfig(decoder=scaled, cross_attention_layers=(0,))
  assert retro.encoder_stack.rotary_scaling is retro.cross_attention_stack.rotary_scaling is None


@pytest.mark.parametrize(
  ('make', 'named'),
  [
    (lambda: LinearScaling(factor=0.0), 'above 0, not 0.0'),
    (lambda: Llama3Scaling(factor=8.0, low_freq_factor=4.0), 'high_freq_factor 4.0.*4.0'),
    (lambda: dataclasses.replace(YARN, beta_slow=64.0), 'beta_fast 32.0.*beta_slow 64.0'),
  ],
)
def test_impossible_scalings_are_refused(make, named):
  with pytest.raises(ValueError, match=named):
    make()

"""Rotary positions in a config.json: `rope_parameters`, or `rope_theta` and `rope_scaling`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructretro_jax.model.config import DecoderConfig
from instructretro_jax.model.rotary_scaling import (
  LinearScaling,
  Llama3Scaling,
  RotaryScaling,
  YarnScaling,
  paper_attention_factor,
)

_OF_ALL = ('rope_type', 'type', 'rope_theta', 'partial_rotary_factor')
# beside the factor; 'finetuned' tells how the weights came about
_OF_KIND = {
  'default': ('factor', 'original_max_position_embeddings'),
  'linear': ('factor', 'finetuned', 'original_max_position_embeddings'),
  'llama3': ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings'),
  'yarn': (
    'factor', 'original_max_position_embeddings', 'beta_fast', 'beta_slow', 'attention_factor',
    'mscale', 'mscale_all_dim', 'truncate', 'finetuned',
  ),
}  # fmt: skip
KINDS = tuple(_OF_KIND)


def parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """The object that tells all but the base; where both stand there, transformers takes the old."""
  return config.get('rope_scaling') or config.get('rope_parameters') or {}


def base(config: Mapping[str, Any], name: str = 'rope_theta') -> float:
  """The base of frequencies, which older files keep under `name`."""
  return float(parameters(config).get('rope_theta') or config.get(name) or 10_000.0)


def scaling(config: Mapping[str, Any], max_len: int, wrong: list[str]) -> RotaryScaling | None:
  """How frequencies are scaled; what is not known here is added to `wrong`.

  Args:
    max_len: of the texts; the length at first where the file does not tell that.
  """
  rope = parameters(config)
  kind = rope.get('rope_type', rope.get('type', 'default'))
  factor = rope.get('factor')
  if any(isinstance(value, Mapping) for value in rope.values()):
    wrong.append('rope_parameters differ from layer to layer')
    return None
  if kind not in KINDS:
    wrong.append(f'rope_scaling is {kind!r}, supported are {", ".join(KINDS)}')
    return None
  if kind == 'default' and factor not in (None, 1):
    wrong.append(f'rope_scaling has the factor {factor!r} and no rope_type')
  known = (*_OF_ALL, *_OF_KIND[kind])
  if unknown := [n for n, v in rope.items() if n not in known and v not in (None, False)]:
    wrong.append(f'rope_scaling is {kind!r} with {", ".join(unknown)}, not known here')
  first_len = config.get('original_max_position_embeddings')
  first_len = first_len or rope.get('original_max_position_embeddings') or max_len
  if kind == 'yarn' and factor is None:
    factor = max_len / first_len
  of_llama3 = ('low_freq_factor', 'high_freq_factor') if kind == 'llama3' else ()
  needed = {'factor': factor, **{name: rope.get(name) for name in of_llama3}}
  if kind != 'default' and (missing := [n for n, v in needed.items() if v is None]):
    wrong.append(f'rope_scaling is {kind!r} without {", ".join(missing)}')
  if wrong or kind == 'default' or (kind == 'linear' and factor == 1):
    return None
  try:
    if kind == 'linear':
      return LinearScaling(factor=float(factor))
    if kind == 'llama3':
      low, high = (float(rope[name]) for name in of_llama3)
      return Llama3Scaling(
        factor=float(factor),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_len=int(first_len),
      )
    return YarnScaling(
      factor=float(factor),
      original_max_len=int(first_len),
      beta_fast=float(rope.get('beta_fast') or 32),
      beta_slow=float(rope.get('beta_slow') or 1),
      attention_factor=_attention_factor(rope, float(factor)),
      truncate=bool(rope.get('truncate', True)),
    )
  except (TypeError, ValueError) as error:
    wrong.append(f'rope_scaling is {dict(rope)}: {error}')
    return None


def _attention_factor(rope: Mapping[str, Any], factor: float) -> float | None:
  """As transformers computes it; None where that is what the paper has."""
  names = ('attention_factor', 'mscale', 'mscale_all_dim')
  given, raised, lowered = (rope.get(name) for name in names)
  if given is None and raised and lowered:
    given = paper_attention_factor(factor, raised) / paper_attention_factor(factor, lowered)
  is_paper = given is None or float(given) == paper_attention_factor(factor)
  return None if is_paper else float(given)


def write(d: DecoderConfig) -> dict[str, Any]:
  """The settings of a decoder, for transformers 5 and 4."""
  rope: dict[str, Any] = {'rope_type': 'default', 'rope_theta': d.rotary_base}
  if d.rotary_fraction != 1:
    rope['partial_rotary_factor'] = d.rotary_fraction
  s = d.rotary_scaling
  if isinstance(s, LinearScaling):
    rope |= {'rope_type': 'linear', 'factor': s.factor}
  elif isinstance(s, Llama3Scaling):
    rope |= {
      'rope_type': 'llama3',
      'factor': s.factor,
      'low_freq_factor': s.low_freq_factor,
      'high_freq_factor': s.high_freq_factor,
      'original_max_position_embeddings': s.original_max_len,
    }
  elif isinstance(s, YarnScaling):
    rope |= {
      'rope_type': 'yarn',
      'factor': s.factor,
      'original_max_position_embeddings': s.original_max_len,
      'beta_fast': s.beta_fast,
      'beta_slow': s.beta_slow,
      'attention_factor': s.magnitude,
      'truncate': s.truncate,
    }
  written = {'rope_theta': d.rotary_base, 'rope_parameters': rope}
  if d.rotary_fraction != 1:
    written['partial_rotary_factor'] = d.rotary_fraction
  return written if s is None else {**written, 'rope_scaling': rope}

"""Where training starts from: a GPT's weights, and a cross-attention that is ready to copy."""

from __future__ import annotations

import dataclasses
import math
import re

from flax import traverse_util
import jax
import jax.numpy as jnp

from instructretro_jax.array_types import Array, Params
from instructretro_jax.model.encoder import MAX_OFFSET

INITS = ('random', 'zero_output', 'copy_ready')
_BIAS = 'encoder/layer_0/relative_bias/table'
_ENCODER_ATTENTION = 'encoder/layer_0/attention'
_CROSS_ATTENTION = re.compile(r'decoder_\d+/cross_attention/attention')


def fit_from_gpt(gpt: Params, retro: Params) -> Params:
  """Retro parameters whose decoder is the GPT's, so that gate 0 equals the GPT exactly.

  The norm before each cross-attention is a copy of the one before the same layer's MLP, if that
  has one: the reference moves that norm and leaves the MLP with a fresh one, which breaks the GPT.

  Raises ValueError if the GPT has parameters that the Retro model lacks, or of another shape.
  """
  flat_gpt = traverse_util.flatten_dict(gpt, sep='/')
  flat = dict(traverse_util.flatten_dict(retro, sep='/'))
  wrong = [p for p, a in flat_gpt.items() if p not in flat or flat[p].shape != a.shape]
  if wrong:
    raise ValueError(f'parameters of the GPT that do not fit the Retro model: {sorted(wrong)}')
  flat.update(flat_gpt)
  for path in flat:
    layer, is_norm, leaf = path.partition('/cross_attention/norm/')
    given = flat_gpt.get(f'{layer}/mlp/norm/{leaf}') if is_norm else None
    if given is not None:
      flat[path] = jnp.array(given, copy=True)  # own buffer
  return traverse_util.unflatten_dict(flat, sep='/')


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossAttentionInit:
  """How a new cross-attention (and its encoder) is set for the first step.

  - 'random': as drawn, the paper's.
  - 'zero_output': output projections 0, so that gate 1 equals gate 0 at the first step.
  - 'copy_ready': W_q = match_scale * P W_k and W_o = output_scale * W_v^T, so that a query finds
    keys by their token and writes what it reads in the direction of the embedding (in the spirit
    of mimetic initialisation, arXiv 2305.09828). If the encoder has a relative bias, half of its
    heads start by looking one token back and write what they see as e P, with P = W_v W_o of
    those heads; a query for e P then finds the places behind its own token and reads what followed.
    Otherwise P is the identity. This init is this project's, not the paper's.
  """

  kind: str = 'random'
  match_scale: float = 1.5
  output_scale: float = 0.25

  def __post_init__(self):
    if self.kind not in INITS:
      raise ValueError(f'kind of start must be one of {INITS}, not {self.kind!r}')


def init_cross_attention(params: Params, start: CrossAttentionInit) -> Params:
  """Retro parameters with the projections of the cross-attention set as `start` says."""
  if start.kind == 'random':
    return params
  flat = dict(traverse_util.flatten_dict(params, sep='/'))
  paths = sorted({m.group() for p in flat if (m := _CROSS_ATTENTION.match(p))})
  if start.kind == 'zero_output':
    for path in paths:
      flat[f'{path}/output/kernel'] = jnp.zeros_like(flat[f'{path}/output/kernel'])
    return traverse_util.unflatten_dict(flat, sep='/')
  back_DD = _look_back(flat) if _BIAS in flat else None
  for path in paths:
    key_DHA, value_DHA = flat[f'{path}/key/kernel'], flat[f'{path}/value/kernel']
    if key_DHA.shape != flat[f'{path}/query/kernel'].shape:
      raise ValueError('copy_ready needs an encoder as wide as the decoder: no encoder_width')
    found_DHA = key_DHA if back_DD is None else jnp.einsum('de,eha->dha', back_DD, key_DHA)
    flat[f'{path}/query/kernel'] = start.match_scale * found_DHA
    flat[f'{path}/output/kernel'] = start.output_scale * jnp.transpose(value_DHA, (1, 2, 0))
  return traverse_util.unflatten_dict(flat, sep='/')


def _look_back(flat: dict[str, Array]) -> Array:
  """Makes half of the heads of the encoder's first layer look one token back; returns their P."""
  bias_HO = flat[_BIAS]
  heads = bias_HO.shape[0] // 2
  flat[_BIAS] = bias_HO.at[:heads, MAX_OFFSET - 1].set(8.0)
  value_DHA = flat[f'{_ENCODER_ATTENTION}/value/kernel']
  width = value_DHA.shape[0]
  # random directions other than those of the embeddings themselves, |e P| about |e|
  key = jax.random.key(0)
  written = jax.random.normal(key, (heads, value_DHA.shape[2], width)) / math.sqrt(width)
  read_DHA = value_DHA[:, :heads] / (jnp.std(value_DHA) * math.sqrt(width))
  written_HAD = written * math.sqrt(width / (heads * value_DHA.shape[2]))
  flat[f'{_ENCODER_ATTENTION}/value/kernel'] = value_DHA.at[:, :heads].set(read_DHA)
  output_HAD = flat[f'{_ENCODER_ATTENTION}/output/kernel']
  flat[f'{_ENCODER_ATTENTION}/output/kernel'] = output_HAD.at[:heads].set(written_HAD)
  return jnp.einsum('dha,hae->de', read_DHA, written_HAD)

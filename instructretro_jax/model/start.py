"""Where training starts from: a GPT's weights, and a cross-attention that is ready to copy."""

from __future__ import annotations

import re

from flax import traverse_util
import jax.numpy as jnp

from instructretro_jax.array_types import Params
from instructretro_jax.model.encoder import MAX_OFFSET

STARTS = ('random', 'zero_output', 'copy_ready')
_CROSS_ATTENTION = re.compile(r'decoder_\d+/cross_attention/attention')


def fit_from_gpt(gpt: Params, retro: Params) -> Params:
  """Retro parameters whose decoder is the GPT's, so that gate 0 equals the GPT exactly.

  The norm before each cross-attention is a copy of the one before the same layer's MLP: the
  reference moves that norm and leaves the MLP with a fresh one, which breaks the GPT.

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
    if is_norm:
      flat[path] = jnp.array(flat_gpt[f'{layer}/mlp/norm/{leaf}'], copy=True)  # own buffer
  return traverse_util.unflatten_dict(flat, sep='/')


def start_cross_attention(params: Params, start: str, output_scale: float = 0.25) -> Params:
  """Sets the projections of the cross-attention (and of the encoder) for the first step.

  - 'random': as initialised, the paper's.
  - 'zero_output': output projections 0, so that gate 1 equals gate 0 at the first step.
  - 'copy_ready': W_q = 1.5 W_k and W_o = output_scale * W_v^T, so that a query finds keys with its
    own token and writes what it reads in the direction of the embedding (in the spirit of mimetic
    initialisation, arXiv 2305.09828). If the encoder has a relative bias, half of its heads start
    by looking one token back. This start is this project's, not the paper's.
  """
  if start not in STARTS:
    raise ValueError(f'start must be one of {STARTS}, not {start!r}')
  flat = dict(traverse_util.flatten_dict(params, sep='/'))
  paths = sorted({m.group() for p in flat if (m := _CROSS_ATTENTION.match(p))})
  for path in paths if start != 'random' else ():
    if start == 'zero_output':
      flat[f'{path}/output/kernel'] = jnp.zeros_like(flat[f'{path}/output/kernel'])
    else:
      flat[f'{path}/query/kernel'] = 1.5 * flat[f'{path}/key/kernel']
      value_DHA = flat[f'{path}/value/kernel']
      flat[f'{path}/output/kernel'] = output_scale * jnp.transpose(value_DHA, (1, 2, 0))
  bias_path = 'encoder/layer_0/relative_bias/table'
  if start == 'copy_ready' and bias_path in flat:
    bias_HO = flat[bias_path]
    looking_back = bias_HO.shape[0] // 2
    flat[bias_path] = bias_HO.at[:looking_back, MAX_OFFSET - 1].set(8.0)
    value_DHA = flat['encoder/layer_0/attention/value/kernel']
    scale_H = jnp.where(jnp.arange(value_DHA.shape[1]) < looking_back, 1.0, 0.3)
    output_HAD = jnp.transpose(value_DHA, (1, 2, 0)) * scale_H[:, None, None]
    flat['encoder/layer_0/attention/output/kernel'] = output_HAD
  return traverse_util.unflatten_dict(flat, sep='/')

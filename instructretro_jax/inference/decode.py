"""Greedy decoding of a batch of prompts by full forward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from instructretro_jax.array_types import Array, Params
from instructretro_jax.model.retro import Retro


def left_pad(prompts: Sequence[Sequence[int]], prompt_len: int, pad_id: int) -> np.ndarray:
  """Prompts that all end at `prompt_len`, [B, prompt_len]: generation starts a chunk there.

  This is the left-padding rule of Wang et al. 2023 (section 3): the next token is the first of a
  chunk. Raises ValueError for a prompt that is longer.
  """
  padded = np.full((len(prompts), prompt_len), pad_id, np.int32)
  for row, prompt in zip(padded, prompts):
    if len(prompt) > prompt_len:
      raise ValueError(f'a prompt has {len(prompt)} tokens, more than {prompt_len}')
    row[prompt_len - len(prompt) :] = prompt
  return padded


def make_greedy_decoder(
  model: Retro, prompt_len: int, num_new: int, eos_id: int, gate: float
) -> Callable[..., Array]:
  """A compiled function (params, prompts_BP, lengths_B, neighbours_BKR, mask_BKR) -> new tokens.

  Every chunk of a prompt has the same neighbours, those of its request. Returns [B, num_new]; all
  tokens after the end token are end tokens. Raises ValueError unless `prompt_len` is a multiple of
  the chunk length and `num_new` fits one chunk.
  """
  C = model.config.chunk_len
  if prompt_len % C or num_new > C:
    raise ValueError(f'prompts of {prompt_len} and {num_new} new tokens do not fit chunks of {C}')
  length = prompt_len + C
  N = length // C

  @jax.jit
  def decode(
    params: Params,
    prompts_BP: Array,
    lengths_B: Array,
    neighbours_BKR: Array | None = None,
    mask_BKR: Array | None = None,
  ) -> Array:
    B = prompts_BP.shape[0]
    tokens_BL = jnp.pad(prompts_BP, ((0, 0), (0, C)), constant_values=eos_id)
    position_L = jnp.arange(length)
    segments_BL = (position_L[None] >= prompt_len - lengths_B[:, None]).astype(jnp.int32)
    spread = lambda x: None if x is None else jnp.broadcast_to(x[:, None], (B, N, *x.shape[1:]))
    neighbours, mask = spread(neighbours_BKR), spread(mask_BKR)

    def extend(n: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
      tokens_BL, is_done_B = carry
      hidden_BLD, head_DV = model.apply(
        {'params': params},
        tokens_BL,
        segments_BL,
        neighbours,
        mask,
        gate=gate,
        method='hidden_and_head',
      )
      here_BD = jax.lax.dynamic_index_in_dim(hidden_BLD, prompt_len + n - 1, 1, keepdims=False)
      chosen_B = jnp.argmax(here_BD @ head_DV.astype(here_BD.dtype), axis=-1).astype(jnp.int32)
      chosen_B = jnp.where(is_done_B, eos_id, chosen_B)
      tokens_BL = tokens_BL.at[:, prompt_len + n].set(chosen_B)
      return tokens_BL, is_done_B | (chosen_B == eos_id)

    start = (tokens_BL, jnp.zeros(B, bool))
    tokens_BL, _ = jax.lax.fori_loop(0, num_new, extend, start)
    return tokens_BL[:, prompt_len : prompt_len + num_new]

  return decode

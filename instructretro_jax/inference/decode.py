"""Decoding of a batch of prompts, one cached token at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from instructretro_jax.array_types import Array, Params
from instructretro_jax.inference.cache import Cache, prefill, step
from instructretro_jax.model.retro import Retro, is_open


def left_pad(prompts: Sequence[Sequence[int]], prompt_len: int) -> tuple[np.ndarray, np.ndarray]:
  """Prompts that all end at `prompt_len`, [B, prompt_len], and their lengths, [B].

  Raises ValueError for a prompt that is empty or longer.
  """
  padded = np.zeros((len(prompts), prompt_len), np.int32)
  lengths = np.array([len(prompt) for prompt in prompts], np.int32)
  for row, prompt in zip(padded, prompts):
    if not 0 < len(prompt) <= prompt_len:
      raise ValueError(f'a prompt has {len(prompt)} tokens, not 1 to {prompt_len}')
    row[prompt_len - len(prompt) :] = prompt
  return padded, lengths


def greedy(logits_BV: Array) -> Array:
  """The most likely token of each row, [B]."""
  return jnp.argmax(logits_BV, axis=-1)


def make_decoder(
  model: Retro,
  *,
  prompt_len: int,
  num_new: int,
  eos_id: int,
  choose: Callable[[Array], Array] = greedy,
) -> Callable[..., np.ndarray]:
  """A function (params, prompts, neighbours_BKR, mask_BKR, gate=1.0) -> new tokens [B, num_new].

  Prompts are token lists of any length up to `prompt_len`; a row does not depend on the others.
  Every chunk reads the neighbours of its request. All tokens after the end token are end tokens,
  and decoding stops when every row has ended. It compiles once for a gate that is a Python 0, which
  needs neither neighbours nor the parameters of encoder and cross-attention, and once for all
  other gates, per batch size.

  Args:
    choose: next tokens [B] from logits [B, V].

  Raises ValueError if the positions are learned and prompt and new tokens have not enough of them.
  """
  c = model.config
  if c.decoder.positions == 'learned' and prompt_len + num_new > c.decoder.max_len:
    raise ValueError(
      f'prompts of {prompt_len} and {num_new} new tokens do not fit the {c.decoder.max_len} '
      'learned positions (max_len)'
    )
  padded_len = -(-prompt_len // c.chunk_len) * c.chunk_len

  def generate(params, tokens_BP, lengths_B, neighbours_BKR, mask_BKR, gate) -> Array:
    apply = functools.partial(model.apply, {'params': params}, gate=gate)  # of a bound model
    shape = (len(tokens_BP), padded_len // c.chunk_len)
    spread = lambda x: jnp.broadcast_to(x[:, None], (*shape, *x.shape[1:]))
    neighbours_BNKR, mask_BNKR = jax.tree.map(spread, (neighbours_BKR, mask_BKR))

    def put(new_BT: Array, n: Array, is_done_B: Array, logits_BV: Array) -> tuple[Array, Array]:
      token_B = jnp.where(is_done_B, eos_id, choose(logits_BV)).astype(jnp.int32)
      return new_BT.at[:, n].set(token_B), is_done_B | (token_B == eos_id)

    def goes_on(carry: tuple[Array, Array, Array, Cache]) -> Array:
      n, _, is_done_B, _ = carry
      return (n < num_new) & ~is_done_B.all()

    def extend(carry: tuple[Array, Array, Array, Cache]) -> tuple[Array, Array, Array, Cache]:
      n, new_BT, is_done_B, cache = carry
      cache, logits_BV = apply(cache, new_BT[:, n - 1], method=step)
      return n + 1, *put(new_BT, n, is_done_B, logits_BV), cache

    cache, logits_BV = apply(
      tokens_BP, lengths_B, neighbours_BNKR, mask_BNKR, max_len=padded_len + num_new, method=prefill
    )
    new_BT = jnp.full((len(tokens_BP), num_new), eos_id, jnp.int32)
    first = put(new_BT, 0, jnp.zeros(len(tokens_BP), bool), logits_BV)
    return jax.lax.while_loop(goes_on, extend, (1, *first, cache))[1]

  generate_open = jax.jit(generate)
  generate_closed = jax.jit(functools.partial(generate, gate=0))

  def decode(
    params: Params,
    prompts: Sequence[Sequence[int]],
    neighbours_BKR: Array | None = None,
    mask_BKR: Array | None = None,
    gate: float | Array = 1.0,
  ) -> np.ndarray:
    inputs = left_pad(prompts, padded_len)
    if is_open(gate):
      return np.asarray(generate_open(params, *inputs, neighbours_BKR, mask_BKR, gate))
    return np.asarray(generate_closed(without_retrieval(params), *inputs, None, None))

  return decode


def without_retrieval(params: Params) -> Params:
  """The parameters that a closed gate needs, so that every model compiles the same."""
  layers = {name: p for name, p in params.items() if not name.startswith('encoder')}
  return {
    name: {k: v for k, v in p.items() if k != 'cross_attention'} if 'decoder_' in name else p
    for name, p in layers.items()
  }

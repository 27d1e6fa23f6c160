"""Decoding of a batch of prompts, one cached token at a time and several a call.

The token chosen last is not in the cache yet: the model reads it in the next step. So no step is
computed whose logits nobody reads, and with the token that ends a chunk the host knows all of the
chunk, and can find its neighbours, before the model reads it.
"""

from __future__ import annotations

from collections.abc import Sequence

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from instructretro_jax.array_types import Array, Params
from instructretro_jax.inference.cache import Cache, prefill, step
from instructretro_jax.inference.sampling import GREEDY, Sampling, choose
from instructretro_jax.model.param_groups import without_retrieval
from instructretro_jax.model.retro import Retro, is_open


@struct.dataclass
class Rows:
  """A batch under way."""

  cache: Cache
  token_B: Array  # chosen, not in the cache yet
  is_done_B: Array  # an end token was chosen, or the host has seen enough
  used_BV: Array | None  # tokens of prompt and answer; None without penalties


class DecodingLoop:
  """Compiled decoding with one model and its end tokens.

  It compiles once per batch size, prompt length and size of cache; once more for a gate that is a
  Python 0, which needs neither neighbours nor the parameters of encoder and cross-attention.

  Args:
    end_ids: tokens that end a row; behind them it has the first.
    tokens_per_call: the most that `advance` can be asked for.
  """

  def __init__(self, model: Retro, end_ids: tuple[int, ...], tokens_per_call: int):
    self.config, self.tokens_per_call = model.config, tokens_per_call
    ends = lambda token_B: (token_B[:, None] == np.array(end_ids)[None]).any(axis=1)

    def begin(
      params, tokens_BP, lengths_B, neighbours_BNKR, mask_BNKR, gate, sampling, max_len
    ) -> Rows:
      cache, logits_BV = model.apply(
        {'params': params},
        tokens_BP,
        lengths_B,
        neighbours_BNKR,
        mask_BNKR,
        max_len=max_len,
        gate=0 if gate is None else gate,
        method=prefill,
      )
      used_BV = None
      if sampling.penalty_B is not None:
        used_BV = _used_tokens(tokens_BP, lengths_B, logits_BV.shape[1])
      token_B = choose(logits_BV, sampling, cache.position_B, used_BV).astype(jnp.int32)
      return Rows(cache, token_B, ends(token_B), _also_used(used_BV, token_B))

    def advance(params, rows, gate, sampling, count) -> tuple[Rows, Array]:
      def goes_on(carry: tuple[Array, Rows, Array]) -> Array:
        n, rows, _ = carry
        return (n < count) & ~rows.is_done_B.all()

      def extend(carry: tuple[Array, Rows, Array]) -> tuple[Array, Rows, Array]:
        n, rows, tokens_BT = carry
        cache, logits_BV = model.apply(
          {'params': params},
          rows.cache,
          rows.token_B,
          gate=0 if gate is None else gate,
          method=step,
        )
        token_B = choose(logits_BV, sampling, cache.position_B, rows.used_BV)
        token_B = jnp.where(rows.is_done_B, end_ids[0], token_B).astype(jnp.int32)
        is_done_B = rows.is_done_B | ends(token_B)
        rows = Rows(cache, token_B, is_done_B, _also_used(rows.used_BV, token_B))
        return n + 1, rows, tokens_BT.at[:, n].set(token_B)

      tokens_BT = jnp.full((len(rows.token_B), tokens_per_call), end_ids[0], jnp.int32)
      return jax.lax.while_loop(goes_on, extend, (0, rows, tokens_BT))[1:]

    self._begin = jax.jit(begin, static_argnames='max_len')
    self._advance = jax.jit(advance, donate_argnames='rows')

  def begin(
    self,
    params: Params,
    tokens_BP: np.ndarray,
    lengths_B: np.ndarray,
    neighbours_BNKR: np.ndarray | None = None,
    mask_BNKR: np.ndarray | None = None,
    *,
    gate: float | np.ndarray,
    max_new: int,
    sampling: Sampling = GREEDY,
  ) -> Rows:
    """Reads the prompts and chooses the first token of each row; arguments as of `prefill`.

    Raises ValueError if they are longer than the decoder is for.
    """
    P, C, c = tokens_BP.shape[1], self.config.chunk_len, self.config.decoder
    longest = int(lengths_B.max()) + max_new
    if c.longest_text is not None and longest > c.longest_text:
      raise ValueError(
        f'prompts of {lengths_B.max()} and {max_new} new tokens do not fit the {c.bound_in_words}'
      )
    params, gate = self._used(params, gate)
    return self._begin(
      params,
      tokens_BP,
      lengths_B,
      neighbours_BNKR,
      mask_BNKR,
      gate,
      sampling,
      max_len=P + -(-max_new // C) * C,  # whole chunks: fewer sizes to compile
    )

  def advance(
    self,
    params: Params,
    rows: Rows,
    *,
    gate: float | np.ndarray,
    count: int,
    sampling: Sampling = GREEDY,
  ) -> tuple[Rows, Array]:
    """Up to `count` more tokens of each row, [B, tokens_per_call]; fewer once all rows are done.

    Rows that are done, and places past `count`, have the end token. The memory of the rows that
    are given goes to those that are returned: use each once.
    """
    assert 0 < count <= self.tokens_per_call, count
    params, gate = self._used(params, gate)
    return self._advance(params, rows, gate, sampling, count)

  def _used(self, params: Params, gate: float | np.ndarray) -> tuple[Params, np.ndarray | None]:
    if is_open(gate):
      return params, np.asarray(gate, np.float32)
    return without_retrieval(params), None


def with_neighbours(rows: Rows, neighbours_BKR: np.ndarray, mask_BKR: np.ndarray) -> Rows:
  """Rows whose chunk under way, and all chunks after it, read these neighbours once it has ended.

  The gate must be open.
  """
  reading = rows.cache.reading
  if reading.mask_BKR is not None:  # else the model does not mask neighbours
    reading = reading.replace(mask_BKR=jnp.asarray(mask_BKR))
  reading = reading.replace(neighbours_BKR=jnp.asarray(neighbours_BKR))
  return rows.replace(cache=rows.cache.replace(reading=reading))


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


def _used_tokens(tokens_BP: Array, lengths_B: Array, vocab_size: int) -> Array:
  """Which tokens the prompts have, [B, V]."""
  B, P = tokens_BP.shape
  is_padding_BP = jnp.arange(P)[None] < P - lengths_B[:, None]
  found_BP = jnp.where(is_padding_BP, vocab_size, tokens_BP)  # past the end: dropped
  used_BV = jnp.zeros((B, vocab_size), bool)
  return used_BV.at[jnp.arange(B)[:, None], found_BP].set(True, mode='drop')


def _also_used(used_BV: Array | None, token_B: Array) -> Array | None:
  return None if used_BV is None else used_BV.at[jnp.arange(len(token_B)), token_B].set(True)

"""How likely given continuations of prompts are: each prompt is read once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from instructretro_jax.array_types import Array, Params
from instructretro_jax.inference.cache import prefill, step
from instructretro_jax.model.retro import Retro


@functools.lru_cache(maxsize=4)
def compile_likelihood(model: Retro) -> Callable[..., Array]:
  """A compiled function that gives [B, O] log-probabilities (nats) of O continuations a prompt.

  Its arguments: params; tokens_BP and lengths_B of prompts padded on the left (`left_pad`);
  continuations_BOT and their lengths_BO, padded behind, 1 or more tokens each; neighbours_BNKR
  and mask_BNKR, None with a closed gate; gate, None if it is closed. Every chunk of a continuation
  reads the neighbours of the prompt's last chunk.
  """

  def run(
    params: Params,
    tokens_BP: Array,
    lengths_B: Array,
    continuations_BOT: Array,
    lengths_BO: Array,
    neighbours_BNKR: Array | None = None,
    mask_BNKR: Array | None = None,
    gate: Array | None = None,
  ) -> Array:
    gate, T = 0 if gate is None else gate, continuations_BOT.shape[-1]
    apply = functools.partial(model.apply, {'params': params}, gate=gate)
    inputs = (tokens_BP, lengths_B, neighbours_BNKR, mask_BNKR)
    cache, logits_BV = apply(*inputs, max_len=tokens_BP.shape[1] + T, method=prefill)

    def of_option(tokens_BT: Array, lengths_B: Array) -> Array:
      def read(carry: tuple, inputs: tuple) -> tuple[tuple, Array]:
        cache, logits_BV = carry
        token_B, n = inputs
        nats_B = log_probs(logits_BV, token_B)
        return apply(cache, token_B, method=step), jnp.where(n < lengths_B, nats_B, 0)

      _, nats_TB = jax.lax.scan(read, (cache, logits_BV), (tokens_BT.T, jnp.arange(T)))
      return nats_TB.sum(axis=0)

    options = jnp.moveaxis(continuations_BOT, 1, 0), lengths_BO.T
    return jax.lax.map(lambda option: of_option(*option), options).T

  return jax.jit(run)


def pad_options(options: Sequence[Sequence[Sequence[int]]]) -> tuple[np.ndarray, np.ndarray]:
  """Continuations of each prompt padded to [B, O, T], and their lengths [B, O].

  Prompts with fewer options than others get empty ones, whose log-probability is 0: drop them.
  """
  num_options = max(map(len, options))
  longest = max(len(tokens) for row in options for tokens in row)
  padded = np.zeros((len(options), num_options, longest), np.int32)
  lengths = np.zeros(padded.shape[:2], np.int32)
  for n, row in enumerate(options):
    for o, tokens in enumerate(row):
      padded[n, o, : len(tokens)], lengths[n, o] = tokens, len(tokens)
  return padded, lengths


def log_probs(logits: Array, tokens: Array) -> Array:
  """Log-probability (nats) of each token, [...], under the logits of its place, [..., V]."""
  chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
  return chosen - jax.nn.logsumexp(logits, axis=-1)

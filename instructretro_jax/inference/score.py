"""Log-probabilities of the tokens of a text, with its neighbours and without."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from instructretro_jax.array_types import Array, Params
from instructretro_jax.inference.batching import power_of_2
from instructretro_jax.inference.likelihood import log_probs
from instructretro_jax.inference.sampler import NUM_NEIGHBOURS, Sampler
from instructretro_jax.model.param_groups import without_retrieval
from instructretro_jax.model.retro import Retro
from instructretro_jax.questions.passage_windows import as_windows
from instructretro_jax.retrieval.retriever import Neighbour
from instructretro_jax.text.tokens import pieces


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
  """What a model makes of a text.

  Attributes:
    pieces: text of each token.
    closed, opened: log-probability (nats) of each token after those before it, with the gate at 0
      and with it open; None for the first token, and of `opened` without neighbours.
    neighbours: of each chunk; those of a chunk serve the next one.
  """

  pieces: tuple[str, ...]
  closed: tuple[float | None, ...]
  opened: tuple[float | None, ...] | None
  neighbours: tuple[tuple[Neighbour, ...], ...]

  def to_json(self) -> dict[str, Any]:
    """The fields as JSON has them; neighbours without their tokens."""
    fields = dataclasses.asdict(self)
    fields['neighbours'] = [
      [{k: v for k, v in neighbour.items() if k != 'tokens'} for neighbour in chunk]
      for chunk in fields['neighbours']
    ]
    return fields


def score(sampler: Sampler, text: str, gate: float = 1.0) -> Score:
  """Scores a text, whose chunks are counted from its start, as in training.

  The gate is tried open only if the sampler has an encoder and a retriever.

  Raises ValueError if the text has fewer than two tokens, or more than the decoder is for.
  """
  config, vocab = sampler.config, sampler.vocab
  C, tokens = config.chunk_len, sampler.tokenize(text)
  L = len(tokens)
  if L < 2:
    raise ValueError(f'{text!r} is {L} tokens: the first has no probability, so give two or more')
  N = power_of_2(-(-L // C))  # so that few lengths are compiled
  if (longest := config.decoder.longest_text) is not None:
    N = min(N, longest // C)
    if N * C < L:
      raise ValueError(f'{L} tokens do not fit the {config.decoder.bound_in_words}')
  tokens_1L = np.full((1, N * C), vocab.pad_id, np.int32)
  tokens_1L[0, :L] = tokens
  is_text_1L = (np.arange(N * C) < L)[None].astype(np.int32)
  run = _scorer(sampler.model)
  as_tuple = lambda nats_1L: (None, *np.asarray(nats_1L)[0, : L - 1].tolist())
  closed = sampler.on_mesh(run, without_retrieval(sampler.params), tokens_1L, is_text_1L)
  opened, neighbours = None, []
  if sampler.has_encoder and sampler.retriever is not None:
    chunks = [vocab.decode(tokens[n : n + C]) for n in range(0, L, C)]
    neighbours = sampler.retriever.find(chunks, NUM_NEIGHBOURS)
    given = [*neighbours, *[[]] * (N - len(neighbours))]
    texts = [[n.tokens for n in found] for found in given]
    windows = [as_windows(chunk, NUM_NEIGHBOURS, 2 * C, vocab.pad_id) for chunk in texts]
    windows = [np.stack(x)[None] for x in zip(*windows)]
    given = (tokens_1L, is_text_1L, *windows, np.float32(gate))
    nats_1L = sampler.on_mesh(run, sampler.params, *given)
    opened = as_tuple(nats_1L)
  return Score(
    pieces=tuple(pieces(vocab, tokens)),
    closed=as_tuple(closed),
    opened=opened,
    neighbours=tuple(map(tuple, neighbours)),
  )


@functools.lru_cache(maxsize=4)
def _scorer(model: Retro) -> Any:
  """A function (params, tokens, segments, neighbours, mask, gate) -> log-probabilities [B, L]."""

  def run(
    params: Params,
    tokens_BL: Array,
    segments_BL: Array,
    neighbours_BNKR: Array | None = None,
    mask_BNKR: Array | None = None,
    gate: Array | None = None,
  ) -> Array:
    logits_BLV = model.apply(
      {'params': params},
      tokens_BL,
      segments_BL,
      neighbours_BNKR,
      mask_BNKR,
      gate=0 if gate is None else gate,
      method='logits',
    )
    next_BL = jnp.roll(tokens_BL, -1, axis=1)  # nothing follows the last: callers drop it
    return log_probs(logits_BLV, next_BL)

  return jax.jit(run)

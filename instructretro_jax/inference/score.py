"""Log-probabilities of the tokens of a text, with its neighbours and without."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from instructretro_jax.array_types import Array, Params
from instructretro_jax.inference.batching import batches, power_of_2
from instructretro_jax.inference.likelihood import log_probs
from instructretro_jax.inference.sampler import NUM_NEIGHBOURS, Sampler
from instructretro_jax.model.param_groups import without_retrieval
from instructretro_jax.model.retro import Retro
from instructretro_jax.pipeline.progress import Bar
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


class TokenScores(NamedTuple):
  """What a model makes of the tokens of a text but the first."""

  nats: list[float]  # log-probability of each after those before it
  is_likeliest: list[bool]  # whether no other token was likelier
  neighbours: list[list[Neighbour]]  # of each chunk, if they were looked for


def score(sampler: Sampler, text: str, gate: float = 1.0) -> Score:
  """Scores a text, whose chunks are counted from its start, as in training.

  The gate is tried open only if the sampler has an encoder and a retriever.

  Raises ValueError if the text has fewer than two tokens, or more than the decoder is for.
  """
  tokens = sampler.tokenize(text)
  if len(tokens) < 2:
    raise ValueError(
      f'{text!r} is {len(tokens)} tokens: the first has no probability, so give two or more'
    )
  (closed,), opened = score_tokens(sampler, [tokens]), None
  if sampler.has_encoder and sampler.retriever is not None:
    (opened,) = score_tokens(sampler, [tokens], gate)
  return Score(
    pieces=tuple(pieces(sampler.vocab, tokens)),
    closed=(None, *closed.nats),
    opened=None if opened is None else (None, *opened.nats),
    neighbours=() if opened is None else tuple(map(tuple, opened.neighbours)),
  )


def longest_scored(sampler: Sampler) -> int | None:
  """Tokens that may stand before the last one of a text: whole chunks; None: no bound."""
  longest, C = sampler.config.decoder.longest_text, sampler.config.chunk_len
  return None if longest is None else longest // C * C


def score_tokens(
  sampler: Sampler,
  texts: Sequence[Sequence[int]],
  gate: float | None = None,
  show_progress: bool = False,
) -> list[TokenScores]:
  """Scores texts of two tokens or more, those of about one length in batches.

  Args:
    gate: None neither looks for neighbours nor reads them.

  Raises ValueError for a text that is longer than the decoder is for.
  """
  vocab, C = sampler.vocab, sampler.config.chunk_len
  lengths = [_padded_length(sampler, len(tokens) - 1) for tokens in texts]
  run, found = _scorer(sampler.model), {}
  groups = batches(lengths, lambda places: True, sampler.batch_size)
  for places, num_rows in Bar(groups, desc='score', disable=not show_progress):
    L, rows = lengths[places[0]], [*places, *[places[0]] * (num_rows - len(places))]
    tokens_BT = np.full((num_rows, L + 1), vocab.pad_id, np.int32)
    is_text_BL = np.zeros((num_rows, L), np.int32)
    for n, place in enumerate(rows):
      tokens_BT[n, : len(texts[place])] = texts[place]
      is_text_BL[n, : len(texts[place]) - 1] = 1
    given = (tokens_BT[:, :-1], tokens_BT[:, 1:], is_text_BL)
    if gate is None:
      neighbours = {place: [] for place in rows}
      results = sampler.on_mesh(run, without_retrieval(sampler.params), *given)
    else:
      neighbours = dict(zip(rows, _neighbours_of(sampler, [texts[place] for place in rows])))
      windows = [_windows(neighbours[place], L // C, C, vocab.pad_id) for place in rows]
      read = (*map(np.stack, zip(*windows)), np.float32(gate))
      results = sampler.on_mesh(run, sampler.params, *given, *read)
    for place, *of_text in zip(places, *map(np.asarray, results)):
      of_tokens = (x[: len(texts[place]) - 1].tolist() for x in of_text)
      found[place] = TokenScores(*of_tokens, neighbours[place])
  return [found[place] for place in range(len(texts))]


def _padded_length(sampler: Sampler, num_read: int) -> int:
  """In whole chunks, a power of two of them where there is room, so that few are compiled."""
  assert num_read, 'a text of one token'
  C, longest = sampler.config.chunk_len, longest_scored(sampler)
  length = C * power_of_2(-(-num_read // C))
  if longest is None or length <= longest:
    return length
  if num_read > longest:
    bound = sampler.config.decoder.bound_in_words
    raise ValueError(f'{num_read + 1} tokens do not fit the {bound}')
  return longest


def _neighbours_of(sampler: Sampler, texts: Sequence[Sequence[int]]) -> list[list[list[Neighbour]]]:
  """The neighbours of each chunk of each text; those of a chunk serve the next one."""
  C, decode = sampler.config.chunk_len, sampler.vocab.decode
  chunks = [[decode(tokens[n : n + C]) for n in range(0, len(tokens), C)] for tokens in texts]
  different = list(dict.fromkeys(chunk for members in chunks for chunk in members))
  found = dict(zip(different, sampler.retriever.find(different, NUM_NEIGHBOURS)))
  return [[found[chunk] for chunk in members] for members in chunks]


def _windows(
  chunks: Sequence[Sequence[Neighbour]], num_chunks: int, chunk_len: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Neighbours of the first chunks of a text, tokens and mask: [N, K, R] each."""
  given = [*chunks[:num_chunks], *[[]] * (num_chunks - len(chunks))]
  texts = [[n.tokens for n in found] for found in given]
  windows = [as_windows(chunk, NUM_NEIGHBOURS, 2 * chunk_len, pad_id) for chunk in texts]
  return tuple(map(np.stack, zip(*windows)))


@functools.lru_cache(maxsize=4)
def _scorer(model: Retro) -> Any:
  """A function (params, tokens, targets, segments, neighbours, mask, gate) of the targets.

  It gives their log-probabilities and whether no other token is likelier, [B, L] each.
  """

  def run(
    params: Params,
    tokens_BL: Array,
    targets_BL: Array,
    segments_BL: Array,
    neighbours_BNKR: Array | None = None,
    mask_BNKR: Array | None = None,
    gate: Array | None = None,
  ) -> tuple[Array, Array]:
    hidden_BLD = model.apply(
      {'params': params},
      tokens_BL,
      segments_BL,
      neighbours_BNKR,
      mask_BNKR,
      gate=0 if gate is None else gate,
    )

    def of_chunk(chunk: tuple[Array, Array]) -> tuple[Array, Array]:  # not all logits at once
      hidden_BCD, targets_BC = chunk
      logits_BCV = model.apply({'params': params}, hidden_BCD, method='to_logits')
      return log_probs(logits_BCV, targets_BC), logits_BCV.argmax(axis=-1) == targets_BC

    B, L = tokens_BL.shape
    cut = lambda x: jnp.swapaxes(x.reshape(B, -1, model.config.chunk_len, *x.shape[2:]), 0, 1)
    found = jax.lax.map(of_chunk, (cut(hidden_BLD), cut(targets_BL)))
    return jax.tree.map(lambda x_NBC: jnp.swapaxes(x_NBC, 0, 1).reshape(B, L), found)

  return jax.jit(run)

"""What neighbours gave to an answer, token by token."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from instructretro_jax.array_types import Array, Params
from instructretro_jax.inference.answer import Answer, PartialAnswer, Request
from instructretro_jax.inference.batching import power_of_2
from instructretro_jax.inference.likelihood import log_probs
from instructretro_jax.inference.sampler import NUM_NEIGHBOURS, Sampler
from instructretro_jax.model.param_groups import without_retrieval
from instructretro_jax.model.retro import Retro
from instructretro_jax.questions.passage_windows import as_windows
from instructretro_jax.retrieval.retriever import Neighbour


def token_gains(sampler: Sampler, request: Request, answer: Answer) -> list[tuple[str, float]]:
  """The text of each token of an answer, and its log-probability (nats) at the request's gate
  minus that at a gate of 0.

  Both read the sequence as it was written: chunks end where the prompt ends, and those of the
  answer have the neighbours that were found for them then. The texts together are the answer's.

  Raises ValueError if the request's gate is 0, or the chunks of prompt and answer are more than
  there are learned positions.
  """
  if request.gate == 0:
    raise ValueError('the gate of the request is 0: nothing was read, so nothing was gained')
  config, pad_id = sampler.config, sampler.vocab.pad_id
  prompt = sampler.tokenize(request.prompt)
  if not answer.tokens:
    return []
  C, T = config.chunk_len, len(answer.tokens)
  chunks = _neighbours_of_chunks(sampler, request, answer, prompt)
  num_new, num_prompt = -(-T // C), -(-len(prompt) // C)
  if (longest := config.decoder.longest_text) is None:
    num_new = power_of_2(num_new)  # so that few lengths are compiled; padding needs positions too
  elif len(prompt) + num_new * C > longest:
    raise ValueError(
      f'{len(prompt)} tokens of prompt and {num_new} chunks of answer do not fit the '
      + config.decoder.bound_in_words
    )
  N = power_of_2(num_prompt + num_new)
  chunks = [*[()] * (N - num_prompt - num_new), *chunks]
  chunks += [()] * (N - len(chunks))
  start = (N - num_new) * C
  tokens_1L = np.full((1, N * C), pad_id, np.int32)
  tokens_1L[0, start - len(prompt) : start] = prompt
  tokens_1L[0, start : start + T] = answer.tokens
  lengths_1 = np.array([len(prompt) + num_new * C], np.int32)
  K = len(request.neighbours) or NUM_NEIGHBOURS
  windows = [as_windows((n.tokens for n in found), K, 2 * C, pad_id) for found in chunks]
  read = [np.stack(x)[None] for x in zip(*windows)]
  run = functools.partial(sampler.on_mesh, _scorer(sampler.model, num_new * C))
  opened_1T = run(sampler.params, tokens_1L, lengths_1, *read, np.float32(request.gate))
  closed_1T = run(without_retrieval(sampler.params), tokens_1L, lengths_1)
  gains = (np.asarray(opened_1T) - np.asarray(closed_1T))[0, :T].tolist()
  return list(zip(_pieces(sampler, request, answer, prompt), gains))


def _neighbours_of_chunks(
  sampler: Sampler, request: Request, answer: Answer, prompt: Sequence[int]
) -> list[Sequence[Neighbour]]:
  """Neighbours of each chunk of prompt and answer; none of the last, which nothing reads."""
  C, vocab = sampler.config.chunk_len, sampler.vocab
  num_prompt, num_new = (-(-len(x) // C) for x in (prompt, answer.tokens))
  if request.neighbours:
    own = [Neighbour(tokens=vocab.encode(text), text=text) for text in request.neighbours]
    return [own] * (num_prompt + num_new)
  ends = [len(prompt) - n * C for n in range(1, num_prompt)][::-1]
  texts = [vocab.decode(list(prompt[max(0, end - C) : end])) for end in ends]
  chunks = list(sampler.retriever.find(texts, NUM_NEIGHBOURS)) if texts else []
  found, latest = dict(answer.neighbours), ()
  for n in range(num_new):
    latest = found.get(len(prompt) + n * C, latest)
    chunks.append(latest)
  return [*chunks, ()]


def _pieces(sampler: Sampler, request: Request, answer: Answer, prompt: Sequence[int]) -> list[str]:
  """The text of each token, as it is streamed; none of a stop text."""
  bare = dataclasses.replace(request, stop=(), max_new=len(answer.tokens), stop_at_repetition=False)
  replay, pieces, room = PartialAnswer(bare, prompt, sampler.vocab), [], len(answer.text)
  for token in answer.tokens:
    replay.add(token)
    pieces.append(replay.take()[:room])
    room -= len(pieces[-1])
  return pieces


@functools.lru_cache(maxsize=4)
def _scorer(model: Retro, num_last: int) -> Any:
  """A function (params, tokens, lengths, neighbours, mask, gate) -> log-probabilities [B, T].

  They are those of the last `num_last` (T) tokens: the head is put on no others.
  """

  def last_logits(model: Retro, *args, **kwargs) -> Array:
    return model.to_logits(model.run_sequence(*args, **kwargs)[0][:, -num_last - 1 : -1])

  def run(
    params: Params,
    tokens_BL: Array,
    lengths_B: Array,
    neighbours_BNKR: Array | None = None,
    mask_BNKR: Array | None = None,
    gate: Array | None = None,
  ) -> Array:
    logits_BTV = model.apply(
      {'params': params},
      tokens_BL,
      None,
      neighbours_BNKR,
      mask_BNKR,
      gate=0 if gate is None else gate,
      lengths_B=lengths_B,
      method=last_logits,
    )
    return log_probs(logits_BTV, tokens_BL[:, -num_last:])

  return jax.jit(run)

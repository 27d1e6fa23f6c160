"""What is asked questions: our checkpoints, and the language models of Hugging Face."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from pathlib import Path
import re
import tempfile
from typing import Any, Protocol

import numpy as np

from instructretro_jax.inference.answer import Request
from instructretro_jax.inference.decode import left_pad
from instructretro_jax.inference.likelihood import compile_likelihood, pad_options
from instructretro_jax.inference.loading import load_sampler
from instructretro_jax.model.sharding import ONE_DEVICE, MeshConfig
from instructretro_jax.pipeline.progress import Bar
from instructretro_jax.questions.passage_windows import token_windows, windows_of
from instructretro_jax.questions.prompts import Prompter
from instructretro_jax.questions.questions import Question
from instructretro_jax.text.hugging_face_vocabulary import HuggingFaceVocabulary

_LEAD = re.compile(r'^[\s:,;.*"-]+')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Query:
  """A question with what may be read for it.

  Attributes:
    passages: in the prompt, best first.
    encoder_on: whether the encoder reads them too.
  """

  question: Question
  passages: tuple[str, ...] = ()
  encoder_on: bool = False


class Reader(Protocol):
  """Anything that answers. A prompt without room for its question raises ValueError."""

  def answers(self, queries: Sequence[Query]) -> list[str]:
    """A greedy answer to each query, as it was written."""

  def choices(self, queries: Sequence[Query]) -> list[list[float]]:
    """Log-probability (nats) of each of the query's options (`options_of`) as its answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """Tokens of prompt and answer, passages for the encoder, and queries at a time."""

  prompt_len: int
  num_new: int
  num_neighbours: int = 2
  batch_size: int = 8


class CheckpointReader:
  """A checkpoint in the format of this project.

  Args:
    with_encoder: False reads no parameter of encoder and cross-attention.
    mesh: of devices of this process.
  """

  def __init__(
    self, folder: Path, limits: Limits, with_encoder: bool, mesh: MeshConfig = ONE_DEVICE
  ):
    self._sampler = load_sampler(
      folder, with_encoder=with_encoder, batch_size=limits.batch_size, mesh=mesh
    )
    self._limits, self._prompter = limits, Prompter(self._sampler.vocab)

  def answers(self, queries: Sequence[Query]) -> list[str]:
    """The text that is written for each query."""
    requests = [
      Request(
        prompt=tuple(_prompt(self._prompter, query, self._limits)),
        max_new=self._limits.num_new,
        gate=float(query.encoder_on),
        neighbours=self._neighbours(query),
        stop=self._prompter.stops(query.question),
      )
      for query in queries
    ]
    return [answer.text for answer in self._sampler.generate(requests, show_progress=True)]

  def choices(self, queries: Sequence[Query]) -> list[list[float]]:
    """Log-probabilities (nats) of the options of each query."""
    sampler = self._sampler
    C, run = sampler.config.chunk_len, compile_likelihood(sampler.model)
    prompts = [_prompt(self._prompter, query, self._limits) for query in queries]
    padded_len = -(-max(map(len, prompts), default=1) // C) * C
    tokens = [
      [
        self._prompter.answer(query.question, text, with_end=False)
        for text in options_of(query.question)
      ]
      for query in queries
    ]
    found: list[list[float]] = []
    for start in Bar(range(0, len(queries), self._limits.batch_size), desc='choices'):
      # the last batch is filled up, so that all have one shape
      rows = np.arange(start, start + self._limits.batch_size).clip(max=len(queries) - 1)
      inputs = left_pad([prompts[n] for n in rows], padded_len)
      given = pad_options([tokens[n] for n in rows])
      read = ()
      if queries[start].encoder_on:
        windows = self._neighbours_of_chunks([queries[n] for n in rows], padded_len // C)
        read = (*windows, np.float32(1))
      nats_BO = sampler.on_mesh(run, sampler.params, *inputs, *given, *read)
      found += np.asarray(nats_BO).tolist()
    return [row[: len(options)] for row, options in zip(found, tokens)]

  def _neighbours(self, query: Query) -> tuple[str, ...]:
    """Texts for the encoder."""
    if not query.encoder_on:
      return ()
    vocab, window_len = self._sampler.vocab, 2 * self._sampler.config.chunk_len
    found = token_windows(query.passages, vocab, self._limits.num_neighbours, window_len)
    return tuple(vocab.decode(piece) for piece in found)

  def _neighbours_of_chunks(
    self, queries: Sequence[Query], num_chunks: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours of every chunk of the prompts: tokens and mask, [B, N, K, R]."""
    vocab, window_len = self._sampler.vocab, 2 * self._sampler.config.chunk_len
    sizes = (vocab, self._limits.num_neighbours, window_len)
    found = [windows_of(query.passages, *sizes) for query in queries]
    spread = lambda x_KR: np.broadcast_to(x_KR, (num_chunks, *x_KR.shape))
    return tuple(np.stack([spread(x) for x in arrays]) for arrays in zip(*found))


class HuggingFaceReader:
  """A causal or sequence-to-sequence model of the transformers library, on torch.

  The prompts are those of our checkpoints, in the format that its tokenizer suggests.

  Args:
    name: a folder, or a name on the hub.

  Raises ImportError if torch or transformers is not installed (extra `interop`).
  """

  def __init__(self, name: str, limits: Limits):
    import torch
    import transformers

    self._torch, self._limits = torch, limits
    config = transformers.AutoConfig.from_pretrained(name)
    self._is_seq2seq = config.is_encoder_decoder
    kind = (
      transformers.AutoModelForSeq2SeqLM if self._is_seq2seq else transformers.AutoModelForCausalLM
    )
    self._model = kind.from_pretrained(name, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    self._vocab = _vocabulary_of(tokenizer, self._model.generation_config.eos_token_id)
    self._prompter = Prompter(self._vocab)

  def answers(self, queries: Sequence[Query]) -> list[str]:
    """The text that is written for each query."""
    found = []
    for query in Bar(queries, desc='transformers'):
      with self._torch.inference_mode():
        prompt = self._torch.tensor([_prompt(self._prompter, query, self._limits)])
        tokens = self._model.generate(
          prompt,
          attention_mask=self._torch.ones_like(prompt),
          max_new_tokens=self._limits.num_new,
          do_sample=False,
          eos_token_id=[self._prompter.end[-1], *self._vocab.end_ids],
          pad_token_id=self._vocab.eos_id,
        )[0].tolist()
      new = tokens if self._is_seq2seq else tokens[prompt.shape[1] :]
      text = self._vocab.decode(new, continues=not self._is_seq2seq)
      for stop in self._prompter.stops(query.question):
        text = text.split(stop)[0]
      found.append(text)
    return found

  def choices(self, queries: Sequence[Query]) -> list[list[float]]:
    """Log-probabilities (nats) of the options of each query."""
    return [
      [self._log_prob(query, text) for text in options_of(query.question)]
      for query in Bar(queries, desc='transformers')
    ]

  def _log_prob(self, query: Query, text: str) -> float:
    torch, prompt = self._torch, _prompt(self._prompter, query, self._limits)
    answer = self._prompter.answer(query.question, text, with_end=False)
    with torch.inference_mode():
      if self._is_seq2seq:
        labels = torch.tensor([answer])
        logits = self._model(input_ids=torch.tensor([prompt]), labels=labels).logits[0]
      else:
        logits = self._model(input_ids=torch.tensor([prompt + answer])).logits[0]
        logits = logits[len(prompt) - 1 : -1]
      nats = torch.log_softmax(logits.float(), dim=-1)
      return float(nats[torch.arange(len(answer)), torch.tensor(answer)].sum())


def _vocabulary_of(tokenizer: Any, end_ids: int | Sequence[int] | None) -> HuggingFaceVocabulary:
  """A fast tokenizer of transformers as a vocabulary; `end_ids` are those of its model."""
  ends = [] if end_ids is None else [end_ids] if isinstance(end_ids, int) else list(end_ids)
  with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / 'tokenizer.json'
    file.write_text(tokenizer.backend_tokenizer.to_str(), encoding='utf-8')
    vocab = HuggingFaceVocabulary(
      str(file), tokenizer.eos_token, tokenizer.convert_ids_to_tokens(ends)
    )
  vocab.source = tokenizer.name_or_path
  template = tokenizer.chat_template
  vocab.chat_template = template.get('default') if isinstance(template, dict) else template
  vocab.bos_token = tokenizer.bos_token or ''
  return vocab


def _prompt(prompter: Prompter, query: Query, limits: Limits) -> list[int]:
  return prompter.prompt(query.question, limits.prompt_len, query.passages).tokens


def answer_of(text: str, question: Question) -> str:
  """What is judged: of short answers the first line that says something, from its first word on.

  A model may go on behind 'The answer is' with a colon and an empty line.
  """
  if question.how.is_long:
    return text.strip()
  lines = [_LEAD.sub('', line).strip() for line in text.split('\n')]
  return next((line for line in lines if line), '')


def options_of(question: Question) -> tuple[str, ...]:
  """What a question is decided between by likelihood; none if it is not of that kind."""
  return question.choices

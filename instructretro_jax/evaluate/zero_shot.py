"""Zero-shot questions by greedy generation, with and without passages, encoder on and off."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm

from instructretro_jax import manifest
from instructretro_jax.array_types import Params
from instructretro_jax.data import vocabulary
from instructretro_jax.data.passage_windows import windows_of_passages
from instructretro_jax.data.prompts import Prompter
from instructretro_jax.data.questions import Question, read_questions
from instructretro_jax.evaluate.answers import exact_match, f1, mean_with_interval
from instructretro_jax.inference.decode import make_decoder
from instructretro_jax.model.config import RetroConfig
from instructretro_jax.model.retro import Retro
from instructretro_jax.stage import Stage
from instructretro_jax.train.checkpoint import load_params

METRICS = {'exact_match': exact_match, 'f1': f1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShot(Stage):
  """Answers held-out questions with every arm; writes results.json and one record a question.

  With the encoder on, the first windows of the question's passages are the neighbours of every
  chunk of the prompt (the paper gives the encoder its top passages). The encoder is on only where
  the passages are in the prompt too, and only for arms that have one.

  Attributes:
    max_questions: of each task, the first of the held-out split.
    prompt_len: tokens of a prompt; passages are cut to fit.
  """

  name: str = 'questions_eval'
  arms: tuple[str, ...]
  questions: str = 'questions'
  vocabulary: str = 'vocabulary'
  max_questions: int
  prompt_len: int
  num_new: int
  num_neighbours: int = 2
  batch_size: int = 16

  def reads(self) -> tuple[str, ...]:
    return (self.questions, self.vocabulary, *self.arms)

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    vocab = vocabulary.load(root / self.vocabulary)
    questions = self._fitting(read_questions(root / self.questions, 'heldout'), vocab)
    prompter = Prompter(vocab)
    prompts = {
      with_passages: [prompter.prompt(q, self.prompt_len, passages).tokens for q in questions]
      for with_passages, passages in ((True, None), (False, ()))
    }
    # arms of one configuration share what is compiled
    decoder = functools.cache(lambda config: self._decoder(config, vocab))
    windows = functools.cache(
      lambda window_len: passage_windows(questions, vocab, self.num_neighbours, window_len)
    )
    rows, records = [], []
    for arm in tqdm.tqdm(self.arms, desc=self.name, unit='arm'):
      config, params, _ = load_params(root / arm)
      params = jax.device_put(params)
      systems = [('off', True), ('off', False)] + [('on', True)] * ('encoder' in params)
      for encoder, with_passages in systems:
        gate, neighbours = 0, []
        if encoder == 'on':
          gate, neighbours = 1.0, windows(2 * config.chunk_len)
        new_tokens = self._answers(
          decoder(config), params, prompts[with_passages], neighbours, gate
        )
        predictions = [vocab.decode(ids).split('\n')[0].strip() for ids in new_tokens]
        system = {'arm': arm, 'encoder': encoder, 'passages': with_passages}
        rows += _scores(system, questions, predictions)
        records += [
          {**system, 'id': q.id, 'prediction': p, 'answers': q.answers}
          for q, p in zip(questions, predictions)
        ]
    manifest.write_text(folder / 'results.json', json.dumps(rows, indent=1))
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    manifest.write_text(folder / 'records.jsonl', '\n'.join(lines) + '\n')
    return {'questions': dict(collections.Counter(q.task for q in questions))}

  def _fitting(self, questions: Sequence[Question], vocab: vocabulary.Vocabulary) -> list[Question]:
    taken: collections.Counter[str] = collections.Counter()
    chosen = []
    for question in questions:
      if taken[question.task] == self.max_questions:
        continue
      try:
        Prompter(vocab).prompt(question, self.prompt_len)
      except ValueError:
        continue
      taken[question.task] += 1
      chosen.append(question)
    return chosen

  def _decoder(
    self, config: RetroConfig, vocab: vocabulary.Vocabulary
  ) -> Callable[..., np.ndarray]:
    return make_decoder(
      Retro(config), prompt_len=self.prompt_len, num_new=self.num_new, eos_id=vocab.eos_id
    )

  def _answers(
    self,
    decode: Callable[..., np.ndarray],
    params: Params,
    prompts: Sequence[Sequence[int]],
    neighbours: Sequence[np.ndarray],
    gate: float,
  ) -> list[list[int]]:
    """New tokens of each prompt, batch by batch."""
    answers: list[list[int]] = []
    for start in range(0, len(prompts), self.batch_size):
      # the last batch is filled up, so that all have one shape
      rows = np.minimum(np.arange(start, start + self.batch_size), len(prompts) - 1)
      batch = [prompts[row] for row in rows]
      answers += decode(params, batch, *(x[rows] for x in neighbours), gate=gate).tolist()
    return answers[: len(prompts)]


def passage_windows(
  questions: Sequence[Question], vocab: vocabulary.Vocabulary, count: int, window_len: int
) -> list[np.ndarray]:
  """The first `count` windows of each question's passages: tokens and mask, [Q, K, R] each."""
  windows = [windows_of_passages(q.passages, vocab, count, window_len) for q in questions]
  return [np.stack(arrays) for arrays in zip(*windows)]


def _scores(
  system: dict[str, Any], questions: Sequence[Question], predictions: Sequence[str]
) -> list[dict[str, Any]]:
  rows = []
  for task in ('all', *sorted({q.task for q in questions})):
    pairs = [(p, q.answers) for p, q in zip(predictions, questions) if task in ('all', q.task)]
    for metric, score in METRICS.items():
      summary = mean_with_interval([score(p, answers) for p, answers in pairs])
      rows.append({**system, 'task': task, 'metric': metric, **summary})
  return rows

"""Zero-shot questions by greedy generation, with and without passages, encoder on and off."""

from __future__ import annotations

import collections
from collections.abc import Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from instructretro_jax import manifest
from instructretro_jax.data import vocabulary
from instructretro_jax.data.instructions import prompt_tokens
from instructretro_jax.data.questions import Question, read_questions
from instructretro_jax.evaluate.answers import exact_match, f1, mean_with_interval
from instructretro_jax.inference.decode import left_pad, make_greedy_decoder
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
    rows, records = [], []
    for arm in tqdm.tqdm(self.arms, desc=self.name, unit='arm'):
      config, params, _ = load_params(root / arm)
      systems = [('off', True), ('off', False)] + [('on', True)] * ('encoder' in params)
      for encoder, with_passages in systems:
        gate = 1.0 if encoder == 'on' else 0
        predictions = self._answers(Retro(config), params, questions, vocab, gate, with_passages)
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
        prompt_tokens(question, vocab, self.prompt_len)
      except ValueError:
        continue
      taken[question.task] += 1
      chosen.append(question)
    return chosen

  def _answers(
    self,
    model: Retro,
    params: Any,
    questions: Sequence[Question],
    vocab: vocabulary.Vocabulary,
    gate: float,
    with_passages: bool,
  ) -> list[str]:
    decode = make_greedy_decoder(model, self.prompt_len, self.num_new, vocab.eos_id, gate)
    prompts = [prompt_tokens(q, vocab, self.prompt_len, with_passages)[0] for q in questions]
    lengths = np.array([len(p) for p in prompts], np.int32)
    padded = left_pad(prompts, self.prompt_len, vocab.pad_id)
    inputs = [padded, lengths]
    if gate:
      inputs += passage_windows(questions, vocab, self.num_neighbours, 2 * model.config.chunk_len)
    predictions: list[str] = []
    for start in range(0, len(questions), self.batch_size):
      # the last batch is filled up, so that all have one shape
      rows = np.minimum(np.arange(start, start + self.batch_size), len(questions) - 1)
      new_tokens = np.asarray(decode(params, *(x[rows] for x in inputs)))
      for tokens in new_tokens[: len(questions) - start]:
        predictions.append(vocab.decode(tokens.tolist()).split('\n')[0].strip())
    return predictions


def passage_windows(
  questions: Sequence[Question], vocab: vocabulary.Vocabulary, count: int, window_len: int
) -> list[np.ndarray]:
  """The first `count` windows of each question's passages: tokens and mask, [Q, K, R] each."""
  tokens = np.full((len(questions), count * window_len), vocab.pad_id, np.int32)
  mask = np.zeros(tokens.shape, bool)
  for row, question in enumerate(questions):
    ids = vocab.encode('\n\n'.join(question.passages))[: tokens.shape[1]]
    tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
  shape = (len(questions), count, window_len)
  return [tokens.reshape(shape), mask.reshape(shape)]


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

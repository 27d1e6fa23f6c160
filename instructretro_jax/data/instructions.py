"""Instruction tuning: questions with passages as prompts, and the loss on answers only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from instructretro_jax.data.prompts import Prompter
from instructretro_jax.data.questions import Question
from instructretro_jax.data.vocabulary import Vocabulary


class Instructions:
  """One question an example, padded behind: tokens, targets, loss_mask, segments, all [L].

  The loss is on the first answer and the end token. Questions that do not fit are left out.

  Attributes:
    num_cut: examples whose passages were cut.
    num_left_out: questions that do not fit `seq_len` at all.
  """

  def __init__(self, questions: Sequence[Question], vocab: Vocabulary, seq_len: int):
    self._rows: list[tuple[list[int], list[int]]] = []
    self._seq_len, self._pad_id = seq_len, vocab.pad_id
    prompter = Prompter(vocab)
    self.num_cut = self.num_left_out = 0
    for question in questions:
      answer = prompter.answer(question, question.answers[0])
      try:
        prompt, cut, _ = prompter.prompt(question, seq_len + 1 - len(answer))
      except ValueError:
        self.num_left_out += 1
        continue
      self.num_cut += cut > 0
      self._rows.append((prompt, answer))

  def __len__(self) -> int:
    return len(self._rows)

  def examples(self, ids_B: np.ndarray) -> dict[str, np.ndarray]:
    shape = (len(ids_B), self._seq_len + 1)
    tokens, is_answer = np.full(shape, self._pad_id, np.int32), np.zeros(shape, np.float32)
    segments = np.zeros(shape, np.int32)
    for n, i in enumerate(ids_B):
      prompt, answer = self._rows[int(i)]
      end = len(prompt) + len(answer)
      tokens[n, :end] = prompt + answer
      is_answer[n, len(prompt) : end] = 1
      segments[n, :end] = 1
    return {
      'tokens': tokens[:, :-1],
      'targets': tokens[:, 1:],
      'loss_mask': is_answer[:, 1:],
      'segments': segments[:, :-1],
    }

"""Instruction tuning: questions with passages as prompts, and the loss on answers only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from instructretro_jax.data.questions import Question
from instructretro_jax.data.vocabulary import Vocabulary

SYSTEM = (
  'System: This is a chat between a user and an assistant. '
  'The assistant answers from the context, and says so if the answer is not there.\n\n'
)


def prompt_tokens(
  question: Question, vocab: Vocabulary, max_len: int, with_passages: bool = True
) -> tuple[list[int], int]:
  """The prompt in at most `max_len` tokens, and how many passage tokens were cut to fit.

  The passages are cut at their end; the question never is. Raises ValueError if the prompt does
  not fit even without a passage.
  """
  head = vocab.encode(SYSTEM)
  tail = vocab.encode(f'User: {question.question.strip()}\n\nAssistant:')
  passages = []
  if with_passages and question.passages:
    passages = vocab.encode('\n\n'.join(question.passages) + '\n\n')
  room = max_len - len(head) - len(tail)
  if room < 0:
    raise ValueError(f'question {question.id} needs {len(head) + len(tail)} of {max_len} tokens')
  return [*head, *passages[:room], *tail], max(0, len(passages) - room)


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
    self.num_cut = self.num_left_out = 0
    for question in questions:
      answer = [*vocab.encode(f' {question.answers[0].strip()}'), vocab.eos_id]
      try:
        prompt, cut = prompt_tokens(question, vocab, seq_len + 1 - len(answer))
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

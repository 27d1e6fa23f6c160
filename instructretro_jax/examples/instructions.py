"""Instruction tuning: questions as rows of tokens, with the loss on answers only."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
import itertools
from typing import Any, NamedTuple

import numpy as np

from instructretro_jax.examples.mixture import Mixture
from instructretro_jax.examples.packing import best_fit
from instructretro_jax.examples.sequences import IGNORED, example_ids
from instructretro_jax.pipeline import manifest
from instructretro_jax.questions.passage_windows import PassageNeighbours, Windows
from instructretro_jax.questions.prompts import Prompter
from instructretro_jax.questions.questions import Question
from instructretro_jax.text.tokens import Vocabulary

Rates = Sequence[tuple[str, float]]  # of tasks


class Dialogue(NamedTuple):
  """A question as the model gets it."""

  tokens: np.ndarray  # of the prompt, the answer and its end
  prompt_len: int
  lead: int  # places of padding before it, so that the answer begins a chunk
  neighbours: Windows | None

  @property
  def length(self) -> int:
    """Places of a row from its first to its last input; the end token is only a target."""
    return self.lead + len(self.tokens) - 1


class Instructions:
  """Questions in rows of L tokens: one a row, or as many as there is room for.

  Arrays of an example, which is a row:
    tokens, targets [L]; loss_mask [L]: 1 where the target belongs to the first answer or its end.
    segments [L]: number of the dialogue in the row, from 1; 0 on padding.
    positions [L]: of each token in its dialogue; 0 on padding.
    neighbours, neighbour_mask [N, K, R]: only with `neighbours`; all chunks of a dialogue have
      those of its question.

  With neighbours a dialogue begins at a chunk boundary and is padded on its left until its answer
  begins a chunk (Wang et al. 2023, section 3): the first token of the answer reads the neighbours
  that the whole prompt has, as it does in generation. A dialogue is computed as if it were alone.

  Without rates the rows come in shuffled epochs. With rates, rows hold dialogues of one task and
  are drawn so that the shares are those of dialogues: a task whose rows hold m dialogues on
  average is drawn at rate / m. Questions of other tasks are not drawn.

  Raises StageError for a rate without questions.
  """

  def __init__(
    self,
    questions: Sequence[Question],
    vocab: Vocabulary,
    seq_len: int,
    *,
    neighbours: PassageNeighbours | None = None,
    is_packed: bool = False,
    rates: Rates | None = None,
  ):
    self._seq_len, self._pad_id, self._neighbours = seq_len, vocab.pad_id, neighbours
    self._chunk_len = 1 if neighbours is None else neighbours.chunk_len
    if seq_len % self._chunk_len:
      raise ValueError(f'seq_len {seq_len} is no multiple of the chunk length {self._chunk_len}')
    self._counts: collections.Counter[str] = collections.Counter()
    self._dialogues: list[Dialogue] = []
    by_task: dict[str, list[int]] = {}
    drawn = None if rates is None else {task for task, _ in rates}
    prompter = Prompter(vocab)
    for question in questions:
      if drawn is not None and question.task not in drawn:
        self._counts['not_drawn'] += 1
      elif dialogue := self._dialogue(question, prompter):
        by_task.setdefault(question.task, []).append(len(self._dialogues))
        self._dialogues.append(dialogue)
    self._num_by_task = {task: len(members) for task, members in sorted(by_task.items())}
    if rates is None:
      self._rows, self._mixture = self._in_rows(range(len(self._dialogues)), is_packed), None
    else:
      self._rows, self._mixture = self._mixed(by_task, is_packed, rates)

  def __len__(self) -> int:
    return len(self._rows)

  @property
  def longest(self) -> int:
    """Tokens that the longest dialogue has as inputs."""
    return max((len(dialogue.tokens) - 1 for dialogue in self._dialogues), default=0)

  @property
  def counts(self) -> dict[str, Any]:
    """What became of the questions, and what the places of all rows, each once, are taken by.

    Places are `prompt_tokens` + `answer_tokens` - `questions` + `padding`: the end of an answer is
    a target and takes no place.
    """
    kept = self._dialogues
    answers = sum(len(d.tokens) - d.prompt_len for d in kept)
    inputs = sum(len(d.tokens) - 1 for d in kept)
    names = ('passages_cut', 'passage_tokens_cut', 'dialogues_cut', 'turns_cut')
    return {
      'questions': len(kept),
      'questions_by_task': self._num_by_task,
      'rows': len(self._rows),
      'prompt_tokens': sum(d.prompt_len for d in kept),
      'answer_tokens': answers,
      'padding': len(self._rows) * self._seq_len - inputs,
      **{name: self._counts[name] for name in (*names, 'left_out', 'not_drawn')},
    }

  def ids(self, seed: int, positions: np.ndarray) -> np.ndarray:
    """Rows at these positions of an endless stream."""
    if self._mixture is not None:
      return self._mixture.ids(seed, positions)
    return example_ids(seed, len(self._rows), positions)

  def examples(self, ids_B: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of these rows; see the class."""
    shape = (len(ids_B), self._seq_len)
    batch = {name: np.full(shape, self._pad_id, np.int32) for name in ('tokens', 'targets')}
    batch['loss_mask'] = np.zeros(shape, np.float32)
    batch |= {name: np.full(shape, IGNORED, np.int32) for name in ('segments', 'positions')}
    if self._neighbours is not None:
      C, K = self._chunk_len, self._neighbours.num_neighbours
      windows = (len(ids_B), self._seq_len // C, K, 2 * C)
      batch['neighbours'] = np.full(windows, self._pad_id, np.int32)
      batch['neighbour_mask'] = np.zeros(windows, bool)
    for n, row in enumerate(ids_B):
      begin = 0
      for segment, number in enumerate(self._rows[int(row)], 1):
        dialogue = self._dialogues[number]
        self._put(dialogue, begin, segment, {name: array[n] for name, array in batch.items()})
        begin += self._span(dialogue)
    return batch

  def _put(
    self, dialogue: Dialogue, begin: int, segment: int, row: Mapping[str, np.ndarray]
  ) -> None:
    """Writes a dialogue into the arrays of a row, from the place `begin` on."""
    first, end = begin + dialogue.lead, begin + dialogue.length
    row['tokens'][first:end] = dialogue.tokens[:-1]
    row['targets'][first:end] = dialogue.tokens[1:]
    row['loss_mask'][first + dialogue.prompt_len - 1 : end] = 1
    row['segments'][first:end] = segment
    row['positions'][first:end] = np.arange(end - first)
    if dialogue.neighbours is not None:
      chunks = slice(begin // self._chunk_len, -(-end // self._chunk_len))
      row['neighbours'][chunks] = dialogue.neighbours.tokens_KR
      row['neighbour_mask'][chunks] = dialogue.neighbours.mask_KR

  def _span(self, dialogue: Dialogue) -> int:
    """Places of a row that a dialogue takes: whole chunks, where there are neighbours."""
    return -(-dialogue.length // self._chunk_len) * self._chunk_len

  def _dialogue(self, question: Question, prompter: Prompter) -> Dialogue | None:
    """The question in at most L places; None, and counted, if it does not fit."""
    answer = prompter.answer(question, question.answers[0])
    room = self._seq_len + 1 - len(answer)
    try:
      prompt, num_cut, num_turns = prompter.prompt(question, room - room % self._chunk_len)
    except ValueError:
      self._counts['left_out'] += 1
      return None
    self._counts['passages_cut'] += num_cut > 0
    self._counts['passage_tokens_cut'] += num_cut
    self._counts['dialogues_cut'] += num_turns > 0
    self._counts['turns_cut'] += num_turns
    return Dialogue(
      tokens=np.array([*prompt, *answer], np.int32),
      prompt_len=len(prompt),
      lead=-len(prompt) % self._chunk_len,
      neighbours=None if self._neighbours is None else self._neighbours.of(question),
    )

  def _in_rows(self, members: Sequence[int], is_packed: bool) -> list[list[int]]:
    """Dialogues in rows: best fit in the order of the questions, or each by itself."""
    if not is_packed:
      return [[number] for number in members]
    lengths = [self._span(self._dialogues[number]) for number in members]
    return [[members[n] for n in row] for row in best_fit(lengths, self._seq_len)]

  def _mixed(
    self, by_task: Mapping[str, Sequence[int]], is_packed: bool, rates: Rates
  ) -> tuple[list[list[int]], Mixture]:
    if missing := [task for task, _ in rates if task not in by_task]:
      raise manifest.StageError(
        f'rates name {missing}, of which there is no question that fits {self._seq_len} tokens; '
        f'there are {self._num_by_task}: correct rates, or the tasks of the question sets'
      )
    sets = [self._in_rows(by_task[task], is_packed) for task, _ in rates]
    rates_of_rows = [
      rate * len(rows) / len(by_task[task]) for (task, rate), rows in zip(rates, sets)
    ]
    return list(itertools.chain(*sets)), Mixture([len(rows) for rows in sets], rates_of_rows)

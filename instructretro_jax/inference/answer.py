"""What a request asks for, and its answer while it grows: tokens, text, and why it ends."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

from instructretro_jax.inference.checks import check_kinds
from instructretro_jax.retrieval.retriever import Neighbour
from instructretro_jax.text.tokens import Vocabulary

MAX_NEW = 256  # tokens
_MOST_NEW = 1 << 20  # of any request: what is beyond is a slip
_BROKEN = '\ufffd'  # what a decoder makes of a character whose bytes are not all there
_TAIL = 4  # tokens of the prompt that decide how the first new one is spelt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """A prompt and how it is to be continued; a value of another kind than its field's is refused.

  Attributes:
    prompt: text, or tokens.
    gate: scale of the cross-attention; at 0 neighbours are neither looked for nor read.
    neighbours: texts for the encoder, which every chunk reads.
    retrieval_step: without such texts, neighbours of the last chunk are looked for every so many
      new tokens: a multiple of the chunk length, which is the default.
    temperature: 0 takes the most likely token.
    top_k, top_p: bounds on what is drawn; 0 and 1 are none.
    penalty: by which logits of tokens that are there are divided (CTRL); 1 is none.
    seed: of the draws, which depend on it and on the position alone.
    stop: texts that end the answer and are no part of it; also the names of control tokens, which
      are no text when decoded.
    stop_at_repetition: ends the answer when a phrase of two tokens or more stands three times at
      its end (Wang et al. 2023).
  """

  prompt: str | tuple[int, ...]
  max_new: int = MAX_NEW
  gate: float = 0.0
  neighbours: tuple[str, ...] = ()
  retrieval_step: int | None = None
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  penalty: float = 1.0
  seed: int = 0
  stop: tuple[str, ...] = ()
  stop_at_repetition: bool = False

  def __post_init__(self):
    check_kinds(self)
    if not self.prompt:
      raise ValueError('the prompt is empty: give at least one token')
    if not isinstance(self.prompt, str) and min(self.prompt) < 0:
      raise ValueError(f'the prompt has the token {min(self.prompt)}: tokens are 0 or more')
    if self.max_new < 1:
      raise ValueError(f'max_new={self.max_new}: ask for at least one token')
    if self.max_new > _MOST_NEW or self.top_k >= 2**31 or not 0 <= self.seed < 2**32:
      raise ValueError(
        f'max_new={self.max_new} is at most {_MOST_NEW}, top_k={self.top_k} below 2^31, '
        f'seed={self.seed} from 0 and below 2^32'
      )
    if self.retrieval_step is not None and self.retrieval_step < 1:
      raise ValueError(f'retrieval_step={self.retrieval_step} is 1 or more')
    if self.temperature < 0 or self.top_k < 0 or self.penalty <= 0 or not 0 < self.top_p <= 1:
      raise ValueError(
        f'temperature={self.temperature} and top_k={self.top_k} are 0 or more, '
        f'top_p={self.top_p} is above 0 and at most 1, penalty={self.penalty} is above 0'
      )
    if '' in self.stop:
      raise ValueError('a stop text is empty: it would end every answer at once')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
  """An answer.

  Attributes:
    tokens: the new ones, without what ended it; the text may end before the last.
    finish: 'end' (an end token), 'stop' (a stop text), 'repetition', or 'length'.
    neighbours: what was retrieved, by the number of prompt and new tokens that stood there when it
      was; those of the last chunk of the prompt first.
  """

  text: str
  tokens: tuple[int, ...]
  finish: str
  neighbours: tuple[tuple[int, tuple[Neighbour, ...]], ...] = ()


class PartialAnswer:
  """The answer to one request, token by token."""

  def __init__(self, request: Request, prompt: Sequence[int], vocab: Vocabulary):
    self.request, self.prompt, self.tokens = request, list(prompt), []
    self.finish: str | None = None
    self.neighbours: list[tuple[int, tuple[Neighbour, ...]]] = []
    self._vocab, self._text, self._given = vocab, '', 0
    self._stop_tokens = {vocab.control_id(stop) for stop in request.stop} - {None}
    tail = self.prompt[-_TAIL:]
    while vocab.eos_id in tail:  # a new text begins after it
      tail = tail[tail.index(vocab.eos_id) + 1 :]
    self._unread, self._num_read = tail, len(tail)

  def add(self, token: int) -> None:
    """Adds a token, unless the answer has ended; sees whether it ends."""
    if self.finish is not None:
      return
    if token in self._vocab.end_ids:
      self.finish = 'end'
      return
    if token in self._stop_tokens:
      self.finish = 'stop'
      return
    self.tokens.append(token)
    self._read(token)
    found = [self._text.find(stop, self._given) for stop in self.request.stop]
    if found := [place for place in found if place >= 0]:
      self._text, self.finish = self._text[: min(found)], 'stop'
    elif self.request.stop_at_repetition and repeats_at_end(self.tokens):
      self.finish = 'repetition'
    elif len(self.tokens) == self.request.max_new:
      self.finish = 'length'

  def take(self) -> str:
    """Text that was not taken before: whole characters, and nothing that may begin a stop text."""
    if self.finish in ('end', 'length', 'repetition'):
      self._text += self._decoded()  # a character that was never finished
      self._unread, self._num_read = [], 0
    held = 0
    if self.finish is None:
      held = max((_overlap(self._text[self._given :], s) for s in self.request.stop), default=0)
    piece = self._text[self._given : len(self._text) - held]
    self._given += len(piece)
    return piece

  def result(self) -> Answer:
    """The whole answer, once it has ended."""
    assert self.finish is not None
    self.take()
    return Answer(
      text=self._text,
      tokens=tuple(self.tokens),
      finish=self.finish,
      neighbours=tuple(self.neighbours),
    )

  def _read(self, token: int) -> None:
    """Moves whole characters into the text; a token is spelt as it is after the one before."""
    self._unread.append(token)
    new = self._decoded()
    if not new.endswith(_BROKEN):
      self._text += new
      self._unread = self._unread[self._num_read :]
      self._num_read = len(self._unread)

  def _decoded(self) -> str:
    """Text of the tokens that are not in the text yet."""
    if len(self._unread) == self._num_read:
      return ''
    before = self._vocab.decode(self._unread[: self._num_read]) if self._num_read else ''
    return self._vocab.decode(self._unread)[len(before) :]


def repeats_at_end(tokens: Sequence[int], times: int = 3, shortest: int = 2) -> bool:
  """Whether a phrase of `shortest` tokens or more stands `times` times in a row at the end."""
  for n in range(shortest, len(tokens) // times + 1):
    phrase = tokens[-n:]
    if all(tokens[-(k + 1) * n : -k * n] == phrase for k in range(1, times)):
      return True
  return False


def _overlap(text: str, stop: str) -> int:
  """Characters at the end of a text that begin a stop text."""
  for n in range(min(len(text), len(stop) - 1), 0, -1):
    if text.endswith(stop[:n]):
      return n
  return 0

"""How a question is put before a model: its form, and what of it fits."""

from __future__ import annotations

from collections.abc import Sequence
import functools
import re
from typing import NamedTuple

from instructretro_jax.questions.chat_template import TemplateFormat
from instructretro_jax.questions.formats import CHATML, PLAIN, Form, Frame
from instructretro_jax.questions.questions import Question
from instructretro_jax.text import formatted
from instructretro_jax.text.formatted import Formatted
from instructretro_jax.text.tokens import Vocabulary

_MOST_WORD = 40  # characters: longer ones are cut


@functools.lru_cache(maxsize=8)
def format_of(vocab: Vocabulary) -> Form:
  """The chat template of the model, if it has one; ChatML if the vocabulary has its tokens; else
  the format of our instruction tuning.

  Raises StageError if there is a chat template that cannot be used.
  """
  if vocab.chat_template is not None:
    return TemplateFormat(vocab.chat_template, vocab)
  has_all = all(vocab.control_id(name) is not None for name in CHATML.controls)
  return CHATML if has_all else PLAIN


class Prompt(NamedTuple):
  """A prompt that fits, and what was left out for it."""

  tokens: list[int]
  num_cut: int  # tokens of the passages, at their end, and of what separates them if all are cut
  num_turns_cut: int  # of the dialogue before the question, the oldest


class Prompter:
  """Puts questions into the format of a vocabulary, the same in tuning and in evaluation."""

  def __init__(self, vocab: Vocabulary):
    self.vocab, self.format = vocab, format_of(vocab)

  def turns(self, question: Question) -> list[str]:
    """The turns of a question's dialogue; the last says how the answer is wanted."""
    asked = question.question.strip()
    if question.options:
      letters = [f'({chr(65 + n)}) {text}' for n, text in enumerate(question.options)]
      asked = '\n'.join([asked, *letters])
    instruction = question.how.instruction
    return [*question.history, f'{instruction} {asked}' if instruction else asked]

  def prompt(
    self, question: Question, max_len: int, passages: Sequence[str] | None = None
  ) -> Prompt:
    """The prompt in at most `max_len` tokens.

    To fit, the passages are cut at their end, then the oldest turns of the dialogue are left out;
    the question never is.

    Args:
      passages: by default those of the question.

    Raises ValueError if the question alone does not fit.
    """
    passages = question.shown_passages if passages is None else passages
    turns, num_turns = self.turns(question), 0
    while True:
      frame = self._frame(question, turns[num_turns:], passages)
      whole = self._tokens(frame)
      if len(whole) <= max_len:
        return Prompt(whole, 0, num_turns)
      bare = self._tokens(self._frame(question, turns[num_turns:], ())) if passages else whole
      if len(bare) <= max_len:
        tokens = self._cut(frame, len(whole), max_len) or bare
        return Prompt(tokens, len(whole) - len(tokens), num_turns)
      if num_turns + 2 > len(question.history):
        raise ValueError(f'question {question.id} needs {len(bare)} of {max_len} tokens')
      num_turns += 2

  def _frame(self, question: Question, turns: Sequence[str], passages: Sequence[str]) -> Frame:
    frame = self.format.frame(turns, passages, question.system)
    if not question.how.prefill:
      return frame
    begin = self.format.lead + f'{question.how.prefill} {self._quote(question)}'.rstrip()
    return frame._replace(tail=(*frame.tail, begin))

  def _tokens(self, frame: Frame) -> list[int]:
    return formatted.encode(self.vocab, frame.text(), starts=True)

  def _cut(self, frame: Frame, whole_len: int, max_len: int) -> list[int] | None:
    """The frame with as many words of its passages as there is room for; None if for none."""
    ids = self.vocab.encode(frame.passages, continues=True)
    room = max_len - (whole_len - len(ids))
    while room > 0:
      kept = _cut_at_word(frame.passages, self.vocab.decode(ids[:room], continues=True))
      if not kept:
        return None
      tokens = self._tokens(frame._replace(passages=kept))
      if len(tokens) <= max_len:
        return tokens
      room -= len(tokens) - max_len
    return None

  def fits(self, question: Question, max_len: int) -> bool:
    """Whether there is a prompt of `max_len` tokens, if need be without passages and history."""
    try:
      self.prompt(question, max_len, ())
    except ValueError:
      return False
    return True

  def answer(self, question: Question, answer: str, with_end: bool = True) -> list[int]:
    """The tokens of an answer, as they follow the prompt, and of its end."""
    quote = self._quote(question)
    if not question.how.prefill:
      before = self.format.lead
    else:
      before = '' if quote else ' '
    text = before + answer.strip()
    if not with_end:
      return self.vocab.encode(text, continues=True)
    return [*self.vocab.encode(text + quote, continues=True), *self.end]

  def stops(self, question: Question) -> tuple[str, ...]:
    """The texts behind which nothing belongs to the answer."""
    quote = self._quote(question)
    return (*self.format.stop, quote) if quote else self.format.stop

  @property
  def end(self) -> list[int]:
    """The tokens that end an answer."""
    end = Formatted(self.format.end)
    return formatted.encode(self.vocab, end, continues=True) or [self.vocab.eos_id]

  def _quote(self, question: Question) -> str:
    """The quotation mark around an answer, which a prompt that begins the answer ends with."""
    return self.format.quote if question.how.prefill else ''


def _cut_at_word(text: str, prefix: str) -> str:
  """A text up to the last word that is whole in a prefix of about that length."""
  end = len(prefix.rstrip('\ufffd'))
  start = end - len(re.search(r'\S*$', text[:end])[0])
  word = re.match(r'\S*', text[start : end + _MOST_WORD])[0]
  if start < end < start + len(word) <= start + _MOST_WORD:
    return text[:start].rstrip() or text[:end]  # rather a part of a word than nothing
  return text[:end].rstrip()

"""How a question is put before a model: what stands around a dialogue, and what fits."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

from instructretro_jax.questions.questions import Question
from instructretro_jax.text.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatFormat:
  """What stands around the parts of a dialogue.

  Attributes:
    system: the text before and after the system's sentence.
    default_system: that sentence where a dialogue has none; '' for none at all.
    question, answer: before and after each turn of the user and of the assistant.
    passages_in_turn: passages stand in the first question, not before it.
    quote: around a short answer. Behind 'The answer is' SmolLM2 writes a colon and a sentence,
      behind a quotation mark with the answer.
    end: the token that ends an answer; None: that of the vocabulary.
    stop: what shows that the model goes on in another role.
  """

  system: tuple[str, str]
  default_system: str
  question: tuple[str, str]
  answer: tuple[str, str]
  passages_in_turn: bool
  quote: str
  end: str | None
  stop: tuple[str, ...]

  def parts(
    self, turns: Sequence[str], passages: Sequence[str] = (), system: str | None = None
  ) -> tuple[str, str, str]:
    """What stands before the passages, the passages, and what stands after them.

    Args:
      turns: of the user and of the assistant in turn; the last is the user's.
    """
    system = self.default_system if system is None else system
    head = _wrap(self.system, system) if system else ''
    kinds = [self.answer if n % 2 else self.question for n in range(len(turns))]
    tail = ''.join(map(_wrap, kinds, turns))
    if not passages:
      return head, '', tail
    if self.passages_in_turn:
      opening = self.question[0]
      head, tail = head + opening, tail.removeprefix(opening)
    return head, '\n\n'.join(passages) + '\n\n', tail


PLAIN = ChatFormat(
  system=('System: ', '\n\n'),
  default_system='This is a chat between a user and an assistant. The assistant answers from the '
  'context, and says so if the answer is not there.',
  question=('User: ', '\n\nAssistant:'),
  answer=(' ', '\n\n'),
  passages_in_turn=False,
  quote='',
  end=None,
  stop=('\nUser:', '\nAssistant:', '\nSystem:'),
)
CHATML = ChatFormat(
  system=('<|im_start|>system\n', '<|im_end|>\n'),
  default_system='',
  question=('<|im_start|>user\n', '<|im_end|>\n<|im_start|>assistant\n'),
  answer=('', '<|im_end|>\n'),
  passages_in_turn=True,
  quote='"',
  end='<|im_end|>',
  stop=('<|im_start|>', '<|im_end|>'),
)


def format_of(vocab: Vocabulary) -> ChatFormat:
  """ChatML if the vocabulary has its tokens, else the format of our instruction tuning."""
  return CHATML if len(vocab.encode('<|im_start|>')) == 1 else PLAIN


class Prompt(NamedTuple):
  """A prompt that fits, and what was left out for it."""

  tokens: list[int]
  num_cut: int  # tokens of the passages, at their end
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
    turns, num_turns, prefill = self.turns(question), 0, question.how.prefill
    while True:
      head, middle, tail = self.format.parts(turns[num_turns:], passages, question.system)
      if prefill:
        tail += self.format.answer[0] + f'{prefill} {self._quote(question)}'.rstrip()
      head, middle, tail = map(self.vocab.encode, (head, middle, tail))
      room = max_len - len(head) - len(tail)
      if room >= 0:
        return Prompt([*head, *middle[:room], *tail], max(0, len(middle) - room), num_turns)
      if num_turns + 2 > len(question.history):
        needed = len(head) + len(tail)
        raise ValueError(f'question {question.id} needs {needed} of {max_len} tokens')
      num_turns += 2

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
      before = self.format.answer[0]
    else:
      before = '' if quote else ' '
    text = before + answer.strip()
    return [*self.vocab.encode(text + quote), *self.end] if with_end else self.vocab.encode(text)

  def stops(self, question: Question) -> tuple[str, ...]:
    """The texts behind which nothing belongs to the answer."""
    quote = self._quote(question)
    return (*self.format.stop, quote) if quote else self.format.stop

  @property
  def end(self) -> list[int]:
    """The tokens that end an answer."""
    end = self.format.end
    return [self.vocab.eos_id] if end is None else list(self.vocab.encode(end))

  def _quote(self, question: Question) -> str:
    """The quotation mark around an answer, which a prompt that begins the answer ends with."""
    return self.format.quote if question.how.prefill else ''


def _wrap(around: tuple[str, str], text: str) -> str:
  before, after = around
  return f'{before}{text.strip()}{after}'

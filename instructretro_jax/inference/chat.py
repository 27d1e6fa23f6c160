"""How a dialogue is put before a model: the format of our instruction tuning, or ChatML."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

from instructretro_jax.data.instructions import SYSTEM
from instructretro_jax.data.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatFormat:
  """What stands around the parts of a dialogue.

  Attributes:
    question: the text before and after a question; its answer follows.
    answer: before and after an answer that another question follows.
    stop: what shows that the model goes on in another role.
  """

  system: str
  passages: tuple[str, str]
  question: tuple[str, str]
  answer: tuple[str, str]
  stop: tuple[str, ...]

  def prompt(
    self, question: str, passages: Sequence[str] = (), history: Sequence[tuple[str, str]] = ()
  ) -> str:
    """The text that the answer to a question follows.

    Args:
      passages: where the answer is to be found.
      history: questions and answers before.
    """
    parts = [self.system]
    if passages:
      parts += [_wrap(self.passages, '\n\n'.join(passages))]
    for asked, answer in history:
      parts += [_wrap(self.question, asked), _wrap(self.answer, answer)]
    return ''.join([*parts, _wrap(self.question, question)])


PLAIN = ChatFormat(
  system=SYSTEM,
  passages=('', '\n\n'),
  question=('User: ', '\n\nAssistant:'),
  answer=(' ', '\n\n'),
  stop=('\nUser:', '\nAssistant:', '\nSystem:'),
)
CHATML = ChatFormat(
  system='',
  passages=('<|im_start|>system\nAnswer from this context.\n\n', '<|im_end|>\n'),
  question=('<|im_start|>user\n', '<|im_end|>\n<|im_start|>assistant\n'),
  answer=('', '<|im_end|>\n'),
  stop=('<|im_start|>', '<|im_end|>'),
)


def format_of(vocab: Vocabulary) -> ChatFormat:
  """ChatML if the vocabulary has its tokens, else the format of our instruction tuning."""
  return CHATML if len(vocab.encode('<|im_start|>')) == 1 else PLAIN


def _wrap(around: tuple[str, str], text: str) -> str:
  before, after = around
  return f'{before}{text.strip()}{after}'

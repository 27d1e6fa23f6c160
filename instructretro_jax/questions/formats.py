"""Forms of dialogues: what stands around the turns, the passages and the system's sentence."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import json
from typing import NamedTuple, Protocol

from instructretro_jax.text.formatted import Control, Formatted, Part, split


class Frame(NamedTuple):
  """A dialogue in a form: what stands around its passages, which alone may be cut."""

  head: tuple[Part, ...]
  passages: str
  tail: tuple[Part, ...]  # begins with what separates it from passages, if there are any

  def text(self) -> Formatted:
    """The whole of it."""
    return Formatted((*self.head, self.passages, *self.tail))


class Form(Protocol):
  """A way to ask a model.

  Attributes:
    lead: what stands between the prompt and an answer.
    end: what ends an answer; nothing: the end token of the vocabulary.
    quote: around a short answer. Behind 'The answer is' SmolLM2 writes a colon and a sentence,
      behind a quotation mark with the answer.
    stop: what shows that the model goes on in another role.
  """

  lead: str
  end: tuple[Part, ...]
  quote: str
  stop: tuple[str, ...]

  def frame(
    self, turns: Sequence[str], passages: Sequence[str] = (), system: str | None = None
  ) -> Frame:
    """A dialogue in this form.

    Args:
      turns: of the user and of the assistant in turn; the last is the user's.
      system: None: what the form has where a dialogue says nothing.
    """
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatFormat:
  """A form that puts texts before and after each part.

  Attributes:
    system: the text before and after the system's sentence.
    default_system: that sentence where a dialogue has none; '' for none at all.
    question, answer: before and after each turn of the user and of the assistant.
    passages_in_turn: passages stand in the first question, not before it.
    controls: the names of control tokens in these texts.
    quote, end, stop: see `Form`.
  """

  system: tuple[str, str]
  default_system: str
  question: tuple[str, str]
  answer: tuple[str, str]
  passages_in_turn: bool
  controls: tuple[str, ...] = ()
  quote: str
  end: tuple[Part, ...]
  stop: tuple[str, ...]

  @property
  def lead(self) -> str:
    """What stands between the prompt and an answer."""
    return self.answer[0]

  def frame(
    self, turns: Sequence[str], passages: Sequence[str] = (), system: str | None = None
  ) -> Frame:
    """See `Form`."""
    system = self.default_system if system is None else system
    head = self._wrap(self.system, system) if system else []
    kinds = [self.answer if n % 2 else self.question for n in range(len(turns))]
    tail = [part for kind, turn in zip(kinds, turns) for part in self._wrap(kind, turn)]
    if not passages:
      return Frame(tuple(head), '', tuple(tail))
    if self.passages_in_turn:
      opening = split(self.question[0], self.controls)
      head, tail = head + opening, tail[len(opening) :]
    return Frame(tuple(head), '\n\n'.join(passages), ('\n\n', *tail))

  def _wrap(self, around: tuple[str, str], text: str) -> list[Part]:
    before, after = (split(part, self.controls) for part in around)
    return [*before, text.strip(), *after]

  def template(self) -> str:
    """The same form as a chat template, in the language of jinja2."""
    (s0, s1), (q0, q1), (a0, a1) = (
      map(json.dumps, around) for around in (self.system, self.question, self.answer)
    )
    default = self.system[0] + self.default_system + self.system[1] if self.default_system else ''
    return (
      "{% if messages[0]['role'] == 'system' %}"
      f"{{{{ {s0} + messages[0]['content'] | trim + {s1} }}}}"
      f'{{% else %}}{{{{ {json.dumps(default)} }}}}{{% endif %}}'
      '{% for message in messages %}'
      "{% if message['role'] == 'user' %}"
      f"{{{{ {q0} + message['content'] | trim + {q1} }}}}"
      "{% elif message['role'] == 'assistant' %}"
      f"{{{{ {a0} + message['content'] | trim + {a1} }}}}"
      '{% endif %}{% endfor %}'
    )


PLAIN = ChatFormat(
  system=('System: ', '\n\n'),
  default_system='This is a chat between a user and an assistant. The assistant answers from the '
  'context, and says so if the answer is not there.',
  question=('User: ', '\n\nAssistant:'),
  answer=(' ', '\n\n'),
  passages_in_turn=False,
  quote='',
  end=(),
  stop=('\nUser:', '\nAssistant:', '\nSystem:'),
)
CHATML = ChatFormat(
  system=('<|im_start|>system\n', '<|im_end|>\n'),
  default_system='',
  question=('<|im_start|>user\n', '<|im_end|>\n<|im_start|>assistant\n'),
  answer=('', '<|im_end|>\n'),
  passages_in_turn=True,
  controls=('<|im_start|>', '<|im_end|>'),
  quote='"',
  end=(Control('<|im_end|>'),),
  stop=('<|im_start|>', '<|im_end|>'),
)

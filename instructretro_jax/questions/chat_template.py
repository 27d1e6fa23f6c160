"""The chat template that comes with a model, as a form of dialogues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import re
from typing import Any

from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.questions.formats import Frame
from instructretro_jax.text.formatted import Control, Part, split
from instructretro_jax.text.tokens import Vocabulary

_MOST_TEMPLATE, _MOST_OUTPUT = 1 << 17, 1 << 20  # characters
_MOST_STEPS = 10_000
_MARK = re.compile('\ue000(\\d+)\ue001')  # stands for a text while the template is rendered


class TemplateFormat:
  """A form (see formats.Form) that a template describes.

  The template gets marks in the place of texts. So what it writes itself has control tokens, and
  texts stay texts, whatever they spell.

  Raises StageError if the template cannot be rendered, or leaves out a text or moves it.
  """

  quote = '"'

  def __init__(self, template: str, vocab: Vocabulary):
    self._vocab = vocab
    self._render = _compiled(template, vocab)
    ask, told = {'role': 'user', 'content': _mark(0)}, {'role': 'assistant', 'content': _mark(1)}
    prompt = self._pieces([ask], 1)
    whole = self._pieces([ask, told, {**ask, 'content': _mark(2)}], 3)
    asked = prompt[1]
    self.lead = whole[1].removeprefix(asked) if whole[1].startswith(asked) else ''
    behind = split(whole[2], vocab.control_names())
    ends = [n for n, part in enumerate(behind) if isinstance(part, Control)]
    self.end: tuple[Part, ...] = tuple(behind[: ends[0] + 1]) if ends else ()
    own = split(''.join(whole), vocab.control_names())
    self.stop = tuple(dict.fromkeys(part.name for part in own if isinstance(part, Control)))
    try:
      self._pieces([{'role': 'system', 'content': _mark(0)}, {**ask, 'content': _mark(1)}], 2)
      self._has_system = True
    except StageError:
      self._has_system = False

  def frame(
    self, turns: Sequence[str], passages: Sequence[str] = (), system: str | None = None
  ) -> Frame:
    """A dialogue; where the template knows no system, its sentence stands in the first question."""
    texts: list[str] = []

    def mark(text: str) -> str:
      texts.append(text.strip())
      return _mark(len(texts) - 1)

    messages = [{'role': 'system', 'content': mark(system)}] if system and self._has_system else []
    before = f'{mark(system)}\n\n' if system and not self._has_system else ''
    place = len(texts)
    if passages:
      before += mark('')
    for n, turn in enumerate(turns):
      content = (before if n == 0 else '') + mark(turn)
      messages.append({'role': 'assistant' if n % 2 else 'user', 'content': content})
    pieces = self._pieces(messages, len(texts))
    split_own = lambda piece: split(piece, self._vocab.control_names())
    parts: list[list[Part]] = [split_own(pieces[0])]
    for text, piece in zip(texts, pieces[1:]):
      parts.append([text, *split_own(piece)])
    flat = lambda groups: tuple(part for group in groups for part in group)
    if not passages:
      return Frame((), '', flat(parts))
    tail = ('\n\n', *parts[place + 1][1:], *flat(parts[place + 2 :]))
    return Frame(flat(parts[: place + 1]), '\n\n'.join(passages), tail)

  def _pieces(self, messages: Sequence[Mapping[str, str]], num_texts: int) -> list[str]:
    """What the template writes around its texts."""
    rendered = self._render(messages)
    found = _MARK.split(rendered)
    if list(map(int, found[1::2])) != list(range(num_texts)):
      raise _unusable(self._vocab, 'it leaves out a text, repeats it or moves it')
    return found[::2]


def _mark(number: int) -> str:
  return f'\ue000{number}\ue001'


def _unusable(vocab: Vocabulary, reason: str) -> StageError:
  return StageError(
    f'the chat template beside {vocab.source} cannot be used: {reason}; remove '
    'chat_template.jinja there to ask in the form of this project'
  )


def _compiled(template: str, vocab: Vocabulary) -> Any:
  """A function of messages that gives the rendered text. Whatever fails is a StageError."""
  import jinja2
  from jinja2 import ext, sandbox

  class Environment(sandbox.ImmutableSandboxedEnvironment):
    """Without what makes long texts of short ones."""

    intercepted_binops = frozenset({'*', '**', '%'})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
      for value in (left, right):
        if not isinstance(value, (int, float)) or abs(value) > 1 << 20:
          raise jinja2.TemplateRuntimeError(f'{operator} of {type(value).__name__}')
      return super().call_binop(context, operator, left, right)

  def refuse(message: str) -> None:
    raise jinja2.TemplateRuntimeError(message)

  environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols])
  counted = [0]  # numbers of all ranges of one rendering

  def short_range(*arguments: int) -> range:
    numbers = range(*arguments)
    counted[0] += len(numbers)
    if counted[0] > _MOST_STEPS:
      raise ValueError(f'its ranges have more than {_MOST_STEPS} numbers')
    return numbers

  environment.globals |= {'raise_exception': refuse, 'range': short_range}
  for name in ('center', 'indent', 'format'):
    environment.filters.pop(name)
  given = {
    'bos_token': vocab.bos_token,
    'eos_token': vocab.spelling(vocab.eos_id),
    'add_generation_prompt': True,
  }

  def render(messages: Sequence[Mapping[str, str]]) -> str:
    pieces, size, counted[0] = [], 0, 0
    prompts = messages[-1]['role'] == 'user'
    try:
      for piece in compiled.generate(
        **{**given, 'add_generation_prompt': prompts}, messages=list(messages)
      ):
        pieces.append(piece)
        size += len(piece)
        if size > _MOST_OUTPUT:
          raise ValueError(f'it writes more than {_MOST_OUTPUT} characters')
    except Exception as error:  # of any kind: it is a program of other people
      raise _unusable(vocab, ' '.join(str(error).split()) or type(error).__name__) from error
    return ''.join(pieces)

  if len(template) > _MOST_TEMPLATE:
    raise _unusable(vocab, f'it has {len(template)} characters of at most {_MOST_TEMPLATE}')
  try:
    compiled = environment.from_string(template)
  except Exception as error:
    raise _unusable(vocab, ' '.join(str(error).split())) from error
  return render

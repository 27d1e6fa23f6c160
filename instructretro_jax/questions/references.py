"""What counts as right: the answers of a row in the form that its question asks for.

A question with options is answered by a letter, one of a style with choices by a choice: what a row
has in their place (the text of an option, 'True', JSON true, 1) is mapped to it here.
"""

from __future__ import annotations

from collections.abc import Sequence
import math
import re

from instructretro_jax.questions.styles import STYLES
from instructretro_jax.text.normalised import normalise_space

MAX_OPTIONS = 26  # letters

# what files write for the choices of a style
_SPELLINGS = {
  'yes': ('yes', 'true', 'y', 't', '1', '1.0'),
  'no': ('no', 'false', 'n', 'f', '0', '0.0'),
}
_LETTER = re.compile(r'\(?([A-Za-z])\s*[).:]*')
_LETTER_AND_TEXT = re.compile(r'\(?([A-Za-z])\s*[).:]+\s*(\S.*)')

Answer = str | bool | int | float


def letters_of(options: Sequence[str]) -> tuple[str, ...]:
  """The letters of options, in order."""
  return tuple(chr(ord('A') + n) for n in range(len(options)))


def check_options(whose: str, options: Sequence[str]) -> None:
  """Raises ValueError for what a set declares, if that is no choice."""
  if options and not (2 <= len(options) <= MAX_OPTIONS and all(map(str.strip, options))):
    raise ValueError(
      f'{whose}: options={options!r} are from 2 to {MAX_OPTIONS} texts, or () for none'
    )


def choices_of(style: str, options: Sequence[str]) -> tuple[str, ...]:
  """What the answers of a question are taken from; empty where they are free."""
  return letters_of(options) if options else STYLES[style].choices


def references(
  answers: Sequence[Answer],
  style: str,
  options: Sequence[str] = (),
  first_index: int | None = None,
  labels: Sequence[str] = (),
) -> tuple[str, ...]:
  """The answers as the question asks for them, each once.

  Of several, those that are no choice are left out, as long as one is.

  Args:
    first_index: what a whole number calls the first option; None: a number is an option's text.
    labels: what the options are called, if not by their letters.

  Raises ValueError if none is a choice, or one may mean two options.
  """
  if options:
    found = [_letters(answer, options, first_index, labels) for answer in answers]
    wanted = f'none of the {len(options)} options, by text or letter'
    if first_index is None and any(_is_whole_number(answer) for answer in answers):
      wanted += '; if it counts options, set first_index to what the first one is called'
  elif choices := STYLES[style].choices:
    found = [_choices(answer, choices) for answer in answers]
    wanted = f'none of {" / ".join(choices)}'
  else:
    found = [(as_text(answer),) for answer in answers]
    wanted = 'no text'
  distinct = tuple(dict.fromkeys(one for some in found for one in some if one))
  if not distinct:
    raise ValueError(f'the answer {", ".join(map(repr, answers))[:80]} is {wanted}')
  return distinct


def as_text(answer: Answer) -> str:
  """An answer as it is written; empty if it is no number. JSON's true is 'true'."""
  if isinstance(answer, str):
    return answer.strip()
  if isinstance(answer, float) and not math.isfinite(answer):
    return ''
  return str(answer).lower()


def _letters(
  answer: Answer, options: Sequence[str], first_index: int | None, labels: Sequence[str]
) -> tuple[str, ...]:
  """The letters that an answer means: several if options are equal."""
  letters = letters_of(options)
  if first_index is not None and _is_whole_number(answer):
    place = int(answer) - first_index
    return (letters[place],) if 0 <= place < len(letters) else ()
  text, texts = _folded(as_text(answer)), [_folded(option) for option in options]
  by_text = tuple(letter for letter, option in zip(letters, texts) if option == text)
  by_letter = ()
  if text in (names := [_folded(label) for label in labels]):
    by_letter = (letters[names.index(text)],)
  elif (match := _LETTER.fullmatch(text)) and (letter := match[1].upper()) in letters:
    by_letter = (letter,)
  elif (match := _LETTER_AND_TEXT.fullmatch(text)) and (letter := match[1].upper()) in letters:
    by_letter = (letter,) if texts[letters.index(letter)] == match[2] else ()
  if by_text and by_letter and by_text != by_letter:
    raise ValueError(
      f'the answer {answer!r} is the letter or label of one option and the text of another: '
      'write the options so that they can be told apart'
    )
  return by_text or by_letter


def _choices(answer: Answer, choices: Sequence[str]) -> tuple[str, ...]:
  text = _folded(as_text(answer)).rstrip('.!')
  return tuple(c for c in choices if text == c or text in _SPELLINGS.get(c, ()))


def _is_whole_number(answer: Answer) -> bool:
  if isinstance(answer, str):
    return answer.strip().isdecimal()
  return isinstance(answer, int) and not isinstance(answer, bool)


def _folded(text: str) -> str:
  return normalise_space(text).casefold()

"""Fields of a row that others have written: read by their kind, or refused with their name.

Null is as good as absent. A string where a list is meant is a list of one. Blank texts of a list
are left out where their place means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructretro_jax.questions.passage import Passage
from instructretro_jax.questions.references import MAX_OPTIONS, Answer, references
from instructretro_jax.questions.styles import STYLES
from instructretro_jax.text.documents import MAX_DOCUMENT_BYTES

Row = Mapping[str, Any]

# under the first of these that a row has; what else they are called by is in the docs of the sets
PASSAGE_KEYS = (
  'passages', 'passage', 'ctxs', 'contexts', 'context', 'positive_ctxs', 'sub-paragraphs',
  'sub_paragraph',
)  # fmt: skip
ANSWER_KEYS = ('answers', 'answer', 'longform_answer', 'answerKey')
OPTION_KEYS = ('options', 'choices', 'multichoice_options')
_LABEL_KEY = 'label'  # says something only where the answers are a closed set
_TITLED_KEYS = ('passage', 'context')  # of one text, whose title stands beside it
_PAIR_KEYS = ('sub-paragraphs', 'sub_paragraph')  # a list of two is title and text

_KINDS = {dict: 'an object', list: 'a list', str: 'a string', bool: 'true or false'}


class Unusable(Exception):
  """A row that gives no question: the kind of problem, and in words what is wrong with it."""

  def __init__(self, kind: str, detail: str):
    super().__init__(f'{kind}: {detail}')
    self.kind, self.detail = kind, detail


def as_text(value: Any, field: str) -> str:
  """A string of whole characters, of no more bytes than a document may have."""
  if not isinstance(value, str):
    raise wrong_type(field, value, 'a string')
  try:
    num_bytes = len(value.encode())
  except UnicodeEncodeError as error:
    found = f'{field!r}: character {error.start} is half a character'
    raise Unusable('broken_utf8', found) from error
  if num_bytes > MAX_DOCUMENT_BYTES:
    found = f'{field!r} has {num_bytes} bytes, more than the {MAX_DOCUMENT_BYTES} allowed'
    raise Unusable('too_long', found)
  return value


def as_said(value: Any, field: str) -> str:
  """A string that says something."""
  if not (text := as_text(value, field)).strip():
    raise Unusable('empty', f'{field!r} is blank')
  return text


def optional_text(row: Row, field: str) -> str | None:
  """A string, or None where the row has none."""
  value = row.get(field)
  return None if value is None else as_text(value, field)


def question(row: Row) -> str:
  """What is asked."""
  value = row.get('question')
  if not isinstance(value, str) or not value.strip():
    raise Unusable('missing_question', "'question' is no string, or empty")
  return as_text(value, 'question')


def history(row: Row) -> tuple[str, ...]:
  """The turns before, which alternate and end with the assistant's: no string is taken for one."""
  value = row.get('history')
  if value is None:
    return ()
  if not isinstance(value, list):
    raise wrong_type('history', value, 'a list of turns')
  turns = tuple(as_said(turn, 'history') for turn in value)
  if len(turns) % 2:
    raise Unusable('odd_history', "'history' must end with a turn of the assistant")
  return turns


def style(row: Row, default: str, declared: Sequence[str] = ()) -> str:
  """The row's own style; else what options or JSON's true and false ask for; else the default.

  Args:
    declared: options of rows that have none.
  """
  named = optional_text(row, 'style')
  if named is not None and named not in STYLES:
    raise Unusable('unknown_style', f'{named!r} is none of {sorted(STYLES)}')
  if named is not None:
    return named
  if options(row, declared):
    return 'option'
  if all(isinstance(answer, bool) for answer in answers(row, _is_closed(default))):
    return 'boolean'
  return default


def passages(row: Row) -> tuple[Passage, ...] | None:
  """The passages under the first key that has any; none of them is blank. None without a key."""
  keys = [key for key in PASSAGE_KEYS if key in row]
  for key in keys:
    value = row[key]
    if value is None or value == [] or (key in _PAIR_KEYS and not value):
      continue
    is_pair = key in _PAIR_KEYS and isinstance(value, list) and len(value) == 2
    beside = row.get('title') if key in _TITLED_KEYS and isinstance(value, str) else None
    found = [_passage(one, key, beside) for one in _listed([value] if is_pair else value)]
    kept = tuple(passage for passage in found if passage.text)
    if not kept:
      raise Unusable('empty', f'{key!r} has nothing but blanks')
    return kept
  return () if keys else None


def options(row: Row, declared: Sequence[str] = ()) -> tuple[str, ...]:
  """What a question leaves the choice of; empty if it leaves none.

  Args:
    declared: options of rows that have none.
  """
  texts, _ = _options(row)
  return texts or tuple(declared)


def _options(row: Row) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """The options of a row, and what it calls each of them, if it says so."""
  for key in OPTION_KEYS:
    value, names = row.get(key), None
    if isinstance(value, Mapping) and 'text' in value:  # {"text": [...], "label": [...]}
      value, names = value['text'], value.get('label')
    elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
      value, names = [one.get('text') for one in value], [one.get('label') for one in value]
    if value is None or value == []:
      continue
    texts = tuple(as_said(_number_as_text(one), key) for one in _listed(value))
    if not 2 <= len(texts) <= MAX_OPTIONS:
      found = f'{key!r} has {len(texts)}; from 2 to {MAX_OPTIONS} have a letter each'
      raise Unusable('wrong_options', found)
    labels = tuple(str(name).strip() for name in names) if isinstance(names, list) else ()
    distinct = {label.casefold() for label in labels}
    return texts, labels if len(labels) == len(distinct) == len(texts) else ()
  return (), ()


def answers(row: Row, is_closed: bool = False) -> tuple[Answer, ...]:
  """The answers under the first key that has any, as they stand there; none of them is blank.

  An answer is a string, a number, true or false, or has its text or texts in {"text"}, or what it
  is called in {"value", "aliases"}.

  Args:
    is_closed: the answers are a closed set, so that "label" may say which; true or false does so
      by itself.
  """
  blank = None
  is_label = is_closed or isinstance(row.get(_LABEL_KEY), bool)
  keys = (*ANSWER_KEYS, _LABEL_KEY) if is_label else ANSWER_KEYS
  for key in keys:
    found = _answers(row.get(key), key)
    kept = tuple(one for one in found if not isinstance(one, str) or one.strip())
    if kept:
      return kept
    blank = blank or (key if found else None)
  if blank is not None:
    raise Unusable('empty', f'{blank!r} has nothing but blanks')
  found = f'no answer under {", ".join(map(repr, keys))}'
  if _LABEL_KEY in row and not is_label:
    found += '; what its "label" means is said by options of the set, or by a style with choices'
  raise Unusable('missing_answer', found)


def references_of(
  row: Row, style: str, first_index: int | None = None, declared: Sequence[str] = ()
) -> tuple[str, ...]:
  """The answers in the form that the style, or the options, ask for.

  Args:
    first_index: what a whole number calls the first option.
    declared: options of rows that have none.
  """
  _, labels = _options(row)
  choice = options(row, declared)
  given = answers(row, bool(choice) or _is_closed(style))
  try:
    return references(given, style, choice, first_index, labels)
  except ValueError as error:
    raise Unusable('wrong_answer', str(error)) from error


def wrong_type(field: str, value: Any, wanted: str) -> Unusable:
  """What is said of a value of another kind than a field has."""
  kind = 'null' if value is None else _KINDS.get(type(value), 'a number')
  return Unusable('wrong_type', f'{field!r} is {kind}, not {wanted}')


def _listed(value: Any) -> Sequence[Any]:
  return value if isinstance(value, list) else [value]


def _is_closed(style: str) -> bool:
  return bool(STYLES[style].choices)


def _passage(value: Any, key: str, beside: Any = None) -> Passage:
  title, text = beside, value
  if isinstance(value, Mapping):
    title, text = value.get('title'), value.get('text')
  elif isinstance(value, list) and len(value) == 2:
    title, text = value
  named = 'title' if beside is not None else f'{key}/title'
  title = '' if title is None else as_text(title, named).strip()
  return Passage(as_text(text, key).strip(), title)


def _answers(value: Any, key: str) -> list[Answer]:
  found = []
  for one in _listed(value):
    if isinstance(one, Mapping):
      if 'text' not in one and 'value' not in one:
        raise Unusable('wrong_type', f'{key!r} has an object without "text" or "value"')
      if 'text' in one:
        found += _listed(one['text'])
      else:
        aliases = one.get('aliases')
        found += [one['value'], *([] if aliases is None else _listed(aliases))]
    elif one is not None:
      found.append(one)
  return [one if isinstance(one, (bool, int, float)) else as_text(one, key) for one in found]


def _number_as_text(value: Any) -> Any:
  return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value

"""Styles of questions: how an answer is asked for, how it begins, and how it is judged."""

from __future__ import annotations

import dataclasses

SHORT_METRICS = ('exact_match', 'f1', 'f1_first', 'exact_match_trivia', 'f1_trivia')
ROUGE = ('rouge1', 'rouge2', 'rougeL')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
  """All that follows from how a question is asked (Wang et al. 2023, tables 9 and 10).

  Attributes:
    instruction: before the question.
    prefill: how the answer begins, in the prompt already.
    choices: what it is decided between by likelihood, where the question has no options.
    is_long: an answer may have several lines; of others the first that says something is judged.
    metrics: of evaluate/answers.py.
    is_extractive: whether an answer may stand in a passage, so that passages set a ceiling.
  """

  instruction: str = ''
  prefill: str = ''
  choices: tuple[str, ...] = ()
  is_long: bool = False
  metrics: tuple[str, ...] = SHORT_METRICS
  is_extractive: bool = True


STYLES = {
  # dialogues, whose turns say themselves what is wanted
  'given': Style(is_long=True),
  'span': Style(instruction='Answer the question with a short phrase.', prefill='The answer is'),
  'boolean': Style(
    instruction='Answer the question with yes or no.',
    prefill='The answer is',
    choices=('yes', 'no'),
  ),
  'option': Style(
    instruction='Answer the question with the letter of one option.', prefill='The answer is'
  ),
  'full': Style(instruction='Answer the question in full sentences.', is_long=True),
  'summary': Style(
    instruction='Summarize the text.', is_long=True, metrics=ROUGE, is_extractive=False
  ),
}


def check_style(whose: str, style: str) -> None:
  """Raises ValueError for a style that there is not."""
  if style not in STYLES:
    raise ValueError(f'{whose}: the style {style!r} is none of {sorted(STYLES)}')

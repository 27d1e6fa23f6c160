"""Metrics of one answer against its references, and what passages could give at best."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
import functools
import math
import re
import string

from rouge_score import rouge_scorer

from instructretro_jax.evaluate.rouge_tokens import RougeTokenizer
from instructretro_jax.questions.styles import ROUGE

_ARTICLES = re.compile(r'\b(a|an|the)\b')
_NO_PUNCTUATION = str.maketrans('', '', string.punctuation)
_SPACES = str.maketrans(dict.fromkeys(string.punctuation, ' '))
_SPACES_AND_QUOTES = str.maketrans(dict.fromkeys(string.punctuation + '‘’´`', ' '))


def normalize(answer: str) -> str:
  """Lower case, no punctuation, no articles, single spaces (SQuAD: Rajpurkar et al. 2016)."""
  return ' '.join(_ARTICLES.sub(' ', answer.lower().translate(_NO_PUNCTUATION)).split())


def normalize_trivia(answer: str) -> str:
  """As SQuAD's, but punctuation and quotation marks part words (TriviaQA: Joshi et al. 2017)."""
  return ' '.join(_ARTICLES.sub(' ', answer.lower().translate(_SPACES_AND_QUOTES)).split())


def normalize_first(answer: str) -> str:
  """As SQuAD's, but punctuation parts words: of the F1 in NVIDIA's Megatron-LM."""
  return ' '.join(_ARTICLES.sub(' ', answer.lower().translate(_SPACES)).split())


def exact_match(prediction: str, references: Sequence[str], norm=normalize) -> float:
  """1 if the prediction equals any reference after normalisation."""
  _check(references)
  return float(any(norm(prediction) == norm(r) for r in references))


def f1(prediction: str, references: Sequence[str], norm=normalize) -> float:
  """Harmonic mean of token precision and recall against the best reference.

  If one side has no token, 1 if neither has (SQuAD 2.0).
  """
  _check(references)
  return max(_f1_of_one(norm(prediction).split(), norm(r).split()) for r in references)


def f1_first(prediction: str, references: Sequence[str]) -> float:
  """F1 against the first reference that is not empty, as Megatron-LM's tools/retro computes it."""
  _check(references)
  usable = [r for r in references if normalize_first(r)]
  return f1(prediction, usable[:1], normalize_first) if usable else 0.0


def rouge(name: str, prediction: str, references: Sequence[str]) -> float:
  """F-measure of ROUGE ('rouge1', 'rouge2' or 'rougeL', stemmed) against the best reference."""
  _check(references)
  scorer = _scorer()
  return max(scorer.score(r, prediction)[name].fmeasure for r in references)


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
  'exact_match': exact_match,
  'f1': f1,
  'f1_first': f1_first,
  'exact_match_trivia': functools.partial(exact_match, norm=normalize_trivia),
  'f1_trivia': functools.partial(f1, norm=normalize_trivia),
  'rouge1': functools.partial(rouge, 'rouge1'),
  'rouge2': functools.partial(rouge, 'rouge2'),
  'rougeL': functools.partial(rouge, 'rougeL'),
}


def holds_answer(passages: Sequence[str], references: Sequence[str]) -> float:
  """1 if any reference stands in a passage, whole words, normalised: the ceiling of an extractor.

  Short references stand in many passages by accident.
  """
  _check(references)
  texts = [f' {normalize(passage)} ' for passage in passages]
  wanted = [f' {normalize(r)} ' for r in references if normalize(r)]
  return float(any(w in text for w in wanted for text in texts))


def likeliest(log_probs: Sequence[float], options: Sequence[str]) -> str:
  """The option with the highest log-probability; of equal ones the first.

  Raises ValueError if one is no number, or there is not one for each option.
  """
  if len(log_probs) != len(options) or any(math.isnan(x) for x in log_probs):
    raise ValueError(f'the options {list(options)} have the log-probabilities {list(log_probs)}')
  return options[max(range(len(options)), key=lambda n: log_probs[n])]


def _check(references: Sequence[str]) -> None:
  if not references:
    raise ValueError('there is no reference to judge an answer by: give each question an answer')


def _f1_of_one(predicted: list[str], reference: list[str]) -> float:
  if not predicted or not reference:
    return float(predicted == reference)
  common = sum((collections.Counter(predicted) & collections.Counter(reference)).values())
  return 2 * common / (len(predicted) + len(reference))


@functools.cache
def _scorer() -> rouge_scorer.RougeScorer:
  return rouge_scorer.RougeScorer(list(ROUGE), tokenizer=RougeTokenizer())

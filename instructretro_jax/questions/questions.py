"""Stage: questions with passages and answers, split so that no passage is on both sides."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

from instructretro_jax.pipeline import manifest, stage
from instructretro_jax.pipeline.notes import note
from instructretro_jax.questions.passage import Passage, shown
from instructretro_jax.questions.references import choices_of
from instructretro_jax.questions.styles import STYLES, Style, check_style
from instructretro_jax.text.documents import Problems
from instructretro_jax.text.normalised import normalise_space

SPLITS = ('train', 'heldout')


@dataclasses.dataclass(frozen=True)
class Question:
  """A question, the passages that it is about, best first, and answers, each right by itself."""

  id: str
  question: str
  passages: tuple[Passage, ...]
  answers: tuple[str, ...]
  task: str  # what the counts of a question set are kept by
  style: str = 'span'  # a key of styles.STYLES
  history: tuple[str, ...] = ()  # turns before, of user and assistant, the user's first
  system: str | None = None  # sentence before the dialogue; None: that of the format
  options: tuple[str, ...] = ()  # of which the answer is the letter

  def __post_init__(self):
    check_style(self.id, self.style)

  @property
  def how(self) -> Style:
    """What follows from its style."""
    return STYLES[self.style]

  @property
  def shown_passages(self) -> tuple[str, ...]:
    """Its passages as a reader sees them."""
    return shown(self.passages)

  @property
  def choices(self) -> tuple[str, ...]:
    """What its answers are taken from; empty where they are free."""
    return choices_of(self.style, self.options)

  @property
  def identity(self) -> str:
    """All that a model is shown of it, whatever the layout: equal for copies alone.

    Of the passages the texts, since the same one is found with a title and without. A long answer
    is one of many that could be taught, and another one makes another question; short answers to
    the same question are references for it.
    """
    answers = sorted({normalise_space(answer) for answer in self.answers})
    return json.dumps(
      {
        'history': [normalise_space(turn) for turn in self.history],
        'system': self.system if self.system is None else normalise_space(self.system),
        'question': normalise_space(self.question),
        'options': [normalise_space(option) for option in self.options],
        'passages': [passage.identity for passage in self.passages],
        'style': self.style,
        'answers': answers if self.how.is_long else None,
      }
    )


class QuestionSet(Protocol):
  """Anything that yields questions. A frozen dataclass, so that a manifest can show its fields."""

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields the questions with ids of their own; reports the rows that it leaves out."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions(stage.Stage):
  """Mixes all sets of questions and splits them into a train and a held-out part, by passage.

  Writes `train.jsonl` and `heldout.jsonl`, ordered by hash.
  The hash of the passage says on which side a question is, so questions on one passage stay
  together, whatever their sets; so do questions whose passages are linked by a third question
  that has both. Passages are the same if their texts are, but for white space. Of questions that
  are equal in all that a model is shown (`Question.identity`) the first by hash is kept.
  """

  name: str = 'questions'
  sets: tuple[QuestionSet, ...]
  heldout_fraction: float  # of the passages, above 0; 1 leaves nothing to train on
  max_per_set: int | None = None  # questions of a task, both splits together; the first by hash
  seed: int = 0
  on_bad_input: str = 'skip'  # or 'refuse'

  def __post_init__(self):
    if not self.sets:
      raise ValueError('the stage needs at least one set of questions')
    if not 0 < self.heldout_fraction <= 1:
      raise ValueError(f'heldout_fraction={self.heldout_fraction} is not above 0 and at most 1')
    if self.max_per_set is not None and self.max_per_set < 1:
      raise ValueError(f'max_per_set={self.max_per_set}: give a count from 1, or None for all')
    Problems(self.on_bad_input)

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    """Reads every set and returns counts. Raises StageError if a split has no question."""
    del root
    problems = Problems(self.on_bad_input)
    read = [question for one in self.sets for question in one.read(problems)]
    if skipped := problems.summary(len(read)):
      note(f'{self.name}: {skipped}, see manifest')
    _check_answers(read)
    kept, num_duplicates = self._select(read)
    groups = _passage_groups(kept)
    parts: dict[str, list[Question]] = {split: [] for split in SPLITS}
    for question, group in zip(kept, groups, strict=True):
      hashed = int(_sha256(f'{self.seed}/split/{group}')[:16], 16)
      is_heldout = hashed < self.heldout_fraction * 2**64
      parts['heldout' if is_heldout else 'train'].append(question)
    self._check_splits(parts, problems.summary(len(read)))
    for split, questions in parts.items():
      lines = [json.dumps(dataclasses.asdict(question)) + '\n' for question in questions]
      manifest.write_text(folder / f'{split}.jsonl', ''.join(lines))
    by_task = {split: collections.Counter(q.task for q in parts[split]) for split in SPLITS}
    return {
      **{split: dict(sorted(counts.items())) for split, counts in by_task.items()},
      'duplicates': num_duplicates,
      'problems': problems.to_json(),
    }

  def _select(self, read: Sequence[Question]) -> tuple[list[Question], int]:
    """The first `max_per_set` of each task in order of hash, and how many were there twice."""
    ids = collections.Counter(question.id for question in read)
    if ids and ids.most_common(1)[0][1] > 1:
      repeated = ids.most_common(1)[0][0]
      raise manifest.StageError(
        f'two questions have the id {repeated!r}: list each set once, and give sets of your own '
        'different task names'
      )
    kept, seen = [], set()
    taken: collections.Counter[str] = collections.Counter()
    num_duplicates = 0
    for question in sorted(read, key=lambda q: _sha256(f'{self.seed}/order/{q.id}')):
      content = question.identity
      if content in seen:
        num_duplicates += 1
      elif self.max_per_set is None or taken[question.task] < self.max_per_set:
        kept.append(question)
        taken[question.task] += 1
      seen.add(content)
    return kept, num_duplicates

  def _check_splits(self, parts: Mapping[str, Sequence[Question]], skipped: str | None) -> None:
    sizes = {split: len(questions) for split, questions in parts.items()}
    for split, size in sizes.items():
      if not size and (split == 'heldout' or self.heldout_fraction < 1):
        raise manifest.StageError(
          f'no question is in the {split} split ({sizes}, heldout_fraction='
          f'{self.heldout_fraction}): add questions on other passages, or change heldout_fraction '
          f'or seed; {skipped or "no row was skipped"}'
        )


def read_questions(folder: Path, split: str) -> list[Question]:
  """The questions of 'train' or 'heldout', in order.

  Raises StageError if there is no such file, or another version wrote it.
  """
  path = folder / f'{split}.jsonl'
  if not path.exists():
    raise manifest.StageError(f'{path} does not exist: run the stage that writes it first')
  with path.open(encoding='utf-8') as file:
    try:
      return [_question_of(json.loads(line)) for line in file]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
      raise manifest.StageError(
        f'{path} is not what this version writes ({error}): make it anew with --rebuild='
        f'{folder.name}'
      ) from error


def _question_of(row: dict[str, Any]) -> Question:
  lists = {key: tuple(row[key]) for key in ('answers', 'history', 'options')}
  passages = tuple(Passage(**passage) for passage in row['passages'])
  return Question(**row | lists | {'passages': passages})


def _check_answers(questions: Sequence[Question]) -> None:
  """Raises StageError for a question of a closed kind that none of its choices answers."""
  for question in questions:
    if question.choices and not set(question.answers) & set(question.choices):
      raise manifest.StageError(
        f'{question.id}: the answers {list(question.answers)} are none of the choices '
        f'{list(question.choices)}: make them so where the set is read (questions/references.py)'
      )


def _passage_groups(questions: Sequence[Question]) -> list[str]:
  """For each question the smallest passage hash among those linked to its passages."""
  parents: dict[str, str] = {}

  def root(passage: str) -> str:
    parents.setdefault(passage, passage)
    while parents[passage] != passage:
      parents[passage] = parents[parents[passage]]
      passage = parents[passage]
    return passage

  # An open question has no passage and is held together with its likes.
  alone = lambda question: [normalise_space(question.question)]
  keys = [[p.identity for p in q.passages] or alone(q) for q in questions]
  hashes = [[_sha256(key) for key in some] for some in keys]
  for first, *others in hashes:
    for other in others:
      low, high = sorted((root(first), root(other)))
      parents[high] = low
  return [root(first) for first, *_ in hashes]


def _sha256(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()

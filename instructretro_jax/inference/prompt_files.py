"""A file of prompts, a JSON object a line: what each asks for, and what is written for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from instructretro_jax.inference.answer import Answer, Request
from instructretro_jax.inference.checks import check_kinds, from_json
from instructretro_jax.inference.sampler import Sampler
from instructretro_jax.inference.session import make_request
from instructretro_jax.pipeline.manifest import StageError

_BESIDE = ('prompt', 'context', 'id')  # what a line may have beside fields of a request


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptLine:
  """One prompt of a file.

  Attributes:
    context: passages ahead of the prompt.
    id: the user's own, written back with the answer.
    settings: a request with all that the line says, or the template; its prompt is not used.
  """

  number: int
  prompt: str
  context: tuple[str, ...]
  settings: Request
  id: str | int | None = None

  def __post_init__(self):
    check_kinds(self)

  def request(self, sampler: Sampler, is_chat: bool) -> Request:
    """What a sampler is asked. Raises ValueError if it cannot be put into words."""
    history = () if is_chat else None
    return make_request(sampler, self.settings, self.prompt, self.context, history)

  def digest(self, *context: Any) -> str:
    """Tells apart whatever would be answered differently; `context` is what lines share."""
    content = [self.id, self.prompt, self.context, dataclasses.asdict(self.settings), context]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def read_prompts(path: Path, template: Request, passages: Sequence[str] = ()) -> list[PromptLine]:
  """The lines of a file in UTF-8: `prompt`, and maybe `id`, `context` or fields of `Request`.

  What a line does not say, or says null of, is as in the template; a string where a list is meant
  is one text. The seed of a line without its own is drawn from the template's and the line's
  number. Raises StageError that names the line.
  """
  lines = []
  for number, content in enumerate(path.read_bytes().split(b'\n'), 1):
    if not content.strip():
      continue
    try:
      text = content.decode('utf-8-sig' if number == 1 else 'utf-8')
      lines.append(_prompt_line(number, json.loads(text), template, passages))
    except UnicodeDecodeError as error:
      wrong = f'byte 0x{content[error.start]:02x} at {error.start} is not UTF-8'
      raise StageError(f'{path}, line {number}: {wrong}') from error
    except RecursionError as error:
      raise StageError(f'{path}, line {number}: it is nested too deep') from error
    except ValueError as error:
      raise StageError(f'{path}, line {number}: {error}') from error
  if not lines:
    raise StageError(f'{path} has no prompt: write lines like {{"prompt": "Once"}}')
  return lines


def seed_of_line(seed: int, number: int) -> int:
  """The seed of a line that has none: so that equal prompts of a file get answers of their own."""
  return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])


def requests_of(
  path: Path, lines: Sequence[PromptLine], sampler: Sampler, is_chat: bool = False
) -> tuple[list[Request], dict[int, str]]:
  """The request of each line, and why those that the model cannot meet are not answered, by place.

  Raises StageError for a line that is no request.
  """
  requests, refused = [], {}
  for place, line in enumerate(lines):
    try:
      requests.append(line.request(sampler, is_chat))
    except ValueError as error:
      raise StageError(f'{path}, line {line.number}: {error}') from error
    try:
      sampler.check(requests[-1])
    except ValueError as error:
      refused[place] = str(error)
  return requests, refused


def answer_rows(
  lines: Sequence[PromptLine], requests: Sequence[Request], refused: dict[int, str],
  sampler: Sampler, first: int = 0,
) -> Iterator[dict[str, Any]]:  # fmt: skip
  """Yields a row of output for each line from the place `first` on, in order, as they are made."""
  asked = [place for place in range(first, len(lines)) if place not in refused]
  answers = sampler.generate_each([requests[place] for place in asked], show_progress=True)
  made: dict[int, dict[str, Any]] = {}
  for place in range(first, len(lines)):
    line = lines[place]
    beside = {} if line.id is None else {'id': line.id}
    if place in refused:
      yield {**beside, 'prompt': line.prompt, 'error': refused[place]}
      continue
    while place not in made:
      number, answer = next(answers)
      made[asked[number]] = answer_json(requests[asked[number]], answer)
    yield {**beside, **made.pop(place)}


def answer_json(request: Request, answer: Answer) -> dict[str, Any]:
  """One line of output: prompt and answer, and the neighbours that were found."""
  found = [
    {
      'after_tokens': num_tokens,
      'chunks': [
        {'chunk': n.chunk_id, 'document': n.document, 'score': n.score, 'text': n.text}
        for n in neighbours
      ],
    }
    for num_tokens, neighbours in answer.neighbours
  ]
  row = {'prompt': request.prompt, 'text': answer.text, 'finish': answer.finish}
  return {**row, 'tokens': len(answer.tokens), **({'retrieved': found} if found else {})}


def _prompt_line(number: int, row: Any, template: Request, passages: Sequence[str]) -> PromptLine:
  if not isinstance(row, dict) or not isinstance(row.get('prompt'), str):
    raise ValueError("no object with a text 'prompt'")
  beside = {name: row[name] for name in _BESIDE if name in row}
  own = {name: value for name, value in row.items() if name not in beside}
  settings = {'seed': seed_of_line(template.seed, number), **from_json(Request, own, _BESIDE)}
  return PromptLine(
    number=number,
    settings=dataclasses.replace(template, **settings),
    **{'context': tuple(passages), **from_json(PromptLine, beside)},
  )

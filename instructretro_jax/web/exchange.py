"""A question from the page, and what goes back: the events of its answers while they grow."""

from __future__ import annotations

from collections.abc import Generator as Stream
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import time
from typing import Any

from instructretro_jax.inference.answer import Answer, Request
from instructretro_jax.inference.checks import check_kinds, from_json
from instructretro_jax.inference.gain import token_gains
from instructretro_jax.inference.sampler import Sampler
from instructretro_jax.inference.session import make_request
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.report.page import shade
from instructretro_jax.retrieval.retriever import Neighbour

GATES = ('off', 'on')
MOST_NEW = 1024  # tokens
MOST_CHARS = 50_000  # of text and passages together
MOST_FOUND = 5  # passages of the index in a prompt

Event = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PageRequest:
  """What the page asks.

  Attributes:
    is_chat: the text is a question to an assistant; else it is continued.
    passages: of the user, ahead of the text.
    num_found: passages of the index that follow those.
    gates: 'off', 'on' or both; each gives an answer.
  """

  text: str
  is_chat: bool = True
  passages: tuple[str, ...] = ()
  num_found: int = 0
  gates: tuple[str, ...] = GATES
  temperature: float = 0.0
  max_new: int = 128
  seed: int = 0

  def __post_init__(self):
    check_kinds(self)
    if not self.text.strip():
      raise ValueError('there is no text: type a question')
    num_chars = len(self.text) + sum(map(len, self.passages))
    if num_chars > MOST_CHARS:
      raise ValueError(f'text and passages have {num_chars} characters of at most {MOST_CHARS}')
    if not self.gates or any(gate not in GATES for gate in self.gates):
      raise ValueError(f'gates={list(self.gates)} are some of {list(GATES)}')
    for name, low, high in (
      ('temperature', 0, 5),
      ('num_found', 0, MOST_FOUND),
      ('max_new', 1, MOST_NEW),
      ('seed', 0, 2**32 - 1),
    ):
      if not low <= getattr(self, name) <= high:
        raise ValueError(f'{name}={getattr(self, name)} is not between {low} and {high}')


def page_request_of(content: Any) -> PageRequest:
  """The question of a JSON object. Raises ValueError that says what is wrong with it."""
  if not isinstance(content, Mapping) or content.get('text') is None:
    raise ValueError("a question is a JSON object with a 'text'")
  return PageRequest(**from_json(PageRequest, content))


def why_closed(sampler: Sampler, has_passages: bool) -> str | None:
  """Why the gate cannot be opened, in words; None if it can."""
  if not sampler.has_encoder:
    return 'This checkpoint has no encoder, so its gate stays off.'
  if sampler.retriever is None and not has_passages:
    return 'There is nothing to read: give a passage, or start the page with an index.'
  return None


def events(sampler: Sampler, question: PageRequest) -> Iterator[Event]:
  """Answers a question; those of several gates grow side by side.

  Yields 'start' (what stands in the prompt), 'piece' (more of an answer), 'done' (how an answer
  ended, and the neighbours that were read), 'gain' (what they gave to each token), 'closed' in
  place of an answer whose gate cannot be opened, and 'end'. Closing the iterator ends the
  generation.

  Raises ValueError if the prompt is too long, or no answer is possible.
  """
  found = _found(sampler, question)
  passages = [*question.passages, *(neighbour.text for neighbour in found)]
  requests, closed = _requests(sampler, question, passages)
  prompt = next(iter(requests.values())).prompt
  given = [{'text': text} for text in question.passages]
  yield {
    'event': 'start',
    'prompt': prompt,
    'tokens': len(sampler.tokenize(prompt)),
    'passages': [*given, *map(_neighbour_json, found)],
  }
  yield from closed
  answers: dict[str, Answer] = {}
  streams = {gate: _Stream(sampler.stream(request)) for gate, request in requests.items()}
  while streams:
    for gate, stream in list(streams.items()):
      piece = stream.next()
      if piece is not None:
        yield {'event': 'piece', 'gate': gate, 'text': piece}
        continue
      answers[gate] = stream.answer
      del streams[gate]
      secs = {'secs': stream.secs, 'first_secs': stream.first_secs}
      yield {'event': 'done', 'gate': gate, **secs, **_answer_json(stream.answer)}
  if 'on' in requests:
    gains = token_gains(sampler, requests['on'], answers['on'])
    tokens = [{'text': text, 'gain': gain, 'shade': shade(gain)} for text, gain in gains]
    yield {'event': 'gain', 'gate': 'on', 'tokens': tokens}
  yield {'event': 'end'}


class _Stream:
  """An answer while it grows, with the time that it took itself: streams take turns.

  Attributes:
    secs, first_secs: until now, and until the first piece; None if there was none.
    answer: once it has ended.
  """

  def __init__(self, pieces: Stream[str, None, Answer]):
    self._pieces = pieces
    self.secs, self.first_secs = 0.0, None
    self.answer: Answer | None = None

  def next(self) -> str | None:
    """The next piece; None at the end."""
    start, piece = time.monotonic(), None
    try:
      piece = next(self._pieces)
    except StopIteration as end:
      self.answer = end.value
    self.secs += time.monotonic() - start
    if piece is not None and self.first_secs is None:
      self.first_secs = self.secs
    return piece


def _found(sampler: Sampler, question: PageRequest) -> Sequence[Neighbour]:
  """Passages of the index for the prompt, best first."""
  if not question.num_found:
    return ()
  if sampler.retriever is None:
    raise ValueError('no passages can be looked up: start the page with an index')
  return sampler.retriever.find([question.text], question.num_found)[0]


def _requests(
  sampler: Sampler, question: PageRequest, passages: Sequence[str]
) -> tuple[dict[str, Request], list[Event]]:
  """The request of each gate, and events that say which gates cannot be opened."""
  settings = {'temperature': question.temperature, 'seed': question.seed}
  template = Request(prompt=(0,), max_new=question.max_new, stop_at_repetition=True, **settings)
  history, requests, closed = () if question.is_chat else None, {}, []
  for gate in question.gates:
    reason = why_closed(sampler, bool(passages)) if gate == 'on' else None
    if reason is not None:
      closed.append({'event': 'closed', 'gate': gate, 'reason': reason})
      continue
    filled = dataclasses.replace(template, gate=float(gate == 'on'))
    try:
      requests[gate] = make_request(sampler, filled, question.text, passages, history)
    except StageError as error:  # the model's chat template cannot be used
      raise ValueError(str(error)) from error
  if not requests:
    raise ValueError(closed[0]['reason'])
  needed = len(sampler.tokenize(next(iter(requests.values())).prompt))
  C = sampler.config.chunk_len
  room = sampler.config.decoder.max_len - C * -(-question.max_new // C)  # gains take whole chunks
  if needed > room:
    raise ValueError(
      f'The prompt is {needed} tokens, passages included, and with {question.max_new} new tokens '
      f'there is room for {max(0, room)}: shorten it, or ask for fewer new tokens.'
    )
  return requests, closed


def _answer_json(answer: Answer) -> Event:
  read = [
    {'after_tokens': count, 'neighbours': [_neighbour_json(n) for n in found]}
    for count, found in answer.neighbours
  ]
  return {'finish': answer.finish, 'tokens': len(answer.tokens), 'read': read}


def _neighbour_json(neighbour: Neighbour) -> Event:
  return {
    'text': neighbour.text,
    'document': neighbour.document,
    'chunk': neighbour.chunk_id,
    'score': neighbour.score,
  }

"""Text from a checkpoint: many requests in batches, or one as a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as Stream
import dataclasses
import functools
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh
import numpy as np

from instructretro_jax.array_types import Params
from instructretro_jax.inference.answer import Answer, PartialAnswer, Request
from instructretro_jax.inference.batching import batches, bucket, check_batch_size
from instructretro_jax.inference.decode import DecodingLoop, left_pad, with_neighbours
from instructretro_jax.inference.sampling import Sampling
from instructretro_jax.model.param_groups import has_retrieval
from instructretro_jax.model.retro import Retro
from instructretro_jax.model.sharding import ONE_DEVICE, local_mesh
from instructretro_jax.pipeline.progress import Bar
from instructretro_jax.questions.passage_windows import as_windows
from instructretro_jax.retrieval.retriever import Neighbour, Retriever
from instructretro_jax.text import formatted, vocabulary

T = TypeVar('T')

TOKENS_PER_CALL = 16  # between looks at the text; what is decoded past a stop is dropped
NUM_NEIGHBOURS = 2  # K, of live retrieval
BATCH_SIZE = 8  # the most rows that are decoded together

_Window = tuple[np.ndarray, np.ndarray]  # tokens of neighbours, and which of them are real


@dataclasses.dataclass(frozen=True)
class _Shape:
  """What requests of one batch share, so that batches of few shapes are compiled."""

  prompt_len: int  # P
  max_new: int  # tokens that the cache has room for
  is_open: bool
  num_neighbours: int  # K
  retrieval_step: int | None  # of live retrieval


class Sampler:
  """Continues prompts.

  A request gets the same text by itself and in any batch, up to the rounding of sums in float32:
  only requests that pad to the same shape and fit the positions together meet in a batch, and draws
  depend on the request alone.

  Args:
    params: of the decoder alone, if no gate will be open.
    retriever: for requests with an open gate that bring no neighbours.
    batch_size: the most rows that are decoded together.
    mesh: what the parameters are spread over, and the work with them; by default one device.
  """

  def __init__(
    self,
    model: Retro,
    params: Params,
    vocab: vocabulary.Vocabulary,
    retriever: Retriever | None = None,
    batch_size: int = BATCH_SIZE,
    mesh: Mesh | None = None,
  ):
    check_batch_size(batch_size)
    self.model, self.config, self.params, self.vocab = model, model.config, params, vocab
    self.retriever, self.batch_size = retriever, batch_size
    self.mesh = mesh or local_mesh(ONE_DEVICE)
    self._decoder = _decoder(model, vocab.end_ids)

  def on_mesh(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """What a compiled function gives on the mesh of this sampler."""
    with jax.set_mesh(self.mesh):
      return function(*args, **kwargs)

  @property
  def has_encoder(self) -> bool:
    """Whether a gate may be open."""
    return has_retrieval(self.params)

  def check(self, request: Request) -> None:
    """Raises ValueError for a request that cannot be met."""
    self._begun(request)

  def generate(self, requests: Sequence[Request], show_progress: bool = False) -> list[Answer]:
    """The answer to each request. Raises ValueError for one that cannot be met."""
    found = dict(self.generate_each(requests, show_progress))
    return [found[place] for place in range(len(requests))]

  def generate_each(
    self, requests: Sequence[Request], show_progress: bool = False
  ) -> Iterator[tuple[int, Answer]]:
    """Yields place and answer of each request, a batch at a time.

    Each batch has the first request that is not answered yet, so that answers come almost in order.
    Raises ValueError, before any is answered, for one that cannot be met.
    """
    begun = [self._begun(request) for request in requests]
    with Bar(total=len(begun), desc='generate', disable=not show_progress) as bar:
      shapes = [self._shape(answer) for answer in begun]
      fit = lambda places: self._fit([begun[place] for place in places])
      for places, num_rows in batches(shapes, fit, self.batch_size):
        batch = [begun[place] for place in places]
        for _ in self._run(batch, shapes[places[0]], num_rows, TOKENS_PER_CALL):
          pass
        bar.update(len(batch))
        yield from ((place, begun[place].result()) for place in places)

  def stream(self, request: Request) -> Stream[str, None, Answer]:
    """Yields the answer in pieces of whole characters; the sampler's value is the answer."""
    answer = self._begun(request)
    for _ in self._run([answer], self._shape(answer), num_rows=1, tokens_per_call=1):
      if piece := answer.take():
        yield piece
    return answer.result()

  def tokenize(self, text: str | Sequence[int]) -> list[int]:
    """The tokens of a text, with what the vocabulary begins texts with; tokens as they are."""
    if isinstance(text, str):
      return formatted.encode(self.vocab, text, starts=True)
    return list(text)

  def _begun(self, request: Request) -> PartialAnswer:
    """The answer before its first token. Raises ValueError for a request that cannot be met."""
    answer = PartialAnswer(request, self.tokenize(request.prompt), self.vocab)
    self._shape(answer)
    if not answer.prompt:
      raise ValueError('the prompt has no token: give it a text')
    if not self._fit([answer]):
      raise ValueError(
        f'a prompt of {len(answer.prompt)} and {request.max_new} new tokens do not fit the '
        + self.config.decoder.bound_in_words
      )
    return answer

  def _fit(self, answers: Sequence[PartialAnswer]) -> bool:
    """Whether a batch of them has positions for its longest prompt and its most new tokens."""
    longest = max(len(a.prompt) for a in answers) + max(a.request.max_new for a in answers)
    most = self.config.decoder.longest_text
    return most is None or longest <= most

  def _shape(self, answer: PartialAnswer) -> _Shape:
    request, C = answer.request, self.config.chunk_len
    shape = _Shape(
      prompt_len=C * bucket(-(-len(answer.prompt) // C)),
      max_new=C * -(-request.max_new // C),
      is_open=request.gate != 0,
      num_neighbours=len(request.neighbours) or NUM_NEIGHBOURS,
      retrieval_step=None,
    )
    if not shape.is_open:
      return dataclasses.replace(shape, num_neighbours=0)
    if not self.has_encoder:
      raise ValueError(f'gate={request.gate}, but there is no encoder here: only a gate of 0 works')
    if request.neighbours:
      return shape
    if self.retriever is None:
      raise ValueError(
        f'gate={request.gate}, but nothing to read: give neighbours, or an index to find them in'
      )
    step = request.retrieval_step or C
    if step < 1 or step % C:
      raise ValueError(f'retrieval_step={step} is no multiple of the chunk length {C}')
    return dataclasses.replace(shape, retrieval_step=step)

  def _run(
    self, answers: list[PartialAnswer], shape: _Shape, num_rows: int, tokens_per_call: int
  ) -> Iterator[None]:
    """Decodes a batch, filled up to `num_rows`; yields after each look at the new tokens."""
    num_added = num_rows - len(answers)
    fill = lambda rows: [*rows, *[rows[0]] * num_added]
    requests = fill([answer.request for answer in answers])
    prompts = left_pad(fill([answer.prompt for answer in answers]), shape.prompt_len)
    sampling, gate, given = _sampling(requests), 0, ()
    if shape.is_open:
      gate = np.array([request.gate for request in requests], np.float32)
      given = _stacked(fill(self._neighbours_of_prompts(answers, shape)))
    most_new = max(request.max_new for request in requests)
    settings = {'gate': gate, 'sampling': sampling}
    rows = self.on_mesh(
      self._decoder.begin, self.params, *prompts, *given, max_new=most_new, **settings
    )
    new_BT, num_new, count = np.asarray(rows.token_B)[:, None], 0, 1
    while True:
      for answer, row in zip(answers, new_BT):
        for token in row[:count].tolist():
          answer.add(token)
      num_new += count  # the last of them is not in the cache
      yield
      is_done = [answer.finish is not None for answer in answers]
      if all(is_done):
        return
      rows = rows.replace(is_done_B=np.array([*is_done, *[True] * num_added]))
      count = min(tokens_per_call, most_new - num_new)
      if step := shape.retrieval_step:
        if num_new % step == 0:
          windows = self._neighbours_of_last_chunks(answers, shape)
          rows = with_neighbours(rows, *_stacked(fill(windows)))
        count = min(count, step - num_new % step)
      rows, new_BT = self.on_mesh(self._decoder.advance, self.params, rows, count=count, **settings)
      new_BT = np.asarray(new_BT)

  def _neighbours_of_prompts(
    self, answers: Sequence[PartialAnswer], shape: _Shape
  ) -> list[_Window]:
    """Neighbours of every chunk of each prompt: tokens and mask, [N, K, R] each."""
    C, N = self.config.chunk_len, shape.prompt_len // self.config.chunk_len
    windows = []
    for answer in answers:
      if shape.retrieval_step is None:
        texts = answer.request.neighbours
        own = [Neighbour(tokens=self.vocab.encode(text), text=text) for text in texts]
        found = [own] * N
      else:
        # chunks end where the prompt ends (Wang et al. 2023, section 3): the first may be short
        ends = range(len(answer.prompt), 0, -C)
        found = self._find([answer.prompt[max(0, end - C) : end] for end in ends], shape)[::-1]
        answer.neighbours.append((len(answer.prompt), tuple(found[-1])))
      empty = [[]] * (N - len(found))  # chunks of padding
      windows.append(_stacked([self._window(neighbours, shape) for neighbours in empty + found]))
    return windows

  def _neighbours_of_last_chunks(
    self, answers: Sequence[PartialAnswer], shape: _Shape
  ) -> list[_Window]:
    """Neighbours of the last C tokens of each row that goes on, [K, R]; none of the others."""
    C, going = self.config.chunk_len, [answer for answer in answers if answer.finish is None]
    found = iter(self._find([(answer.prompt + answer.tokens)[-C:] for answer in going], shape))
    windows = []
    for answer in answers:
      neighbours = next(found) if answer.finish is None else []
      if answer.finish is None:
        answer.neighbours.append((len(answer.prompt) + len(answer.tokens), tuple(neighbours)))
      windows.append(self._window(neighbours, shape))
    return windows

  def _find(self, chunks: Sequence[Sequence[int]], shape: _Shape) -> list[list[Neighbour]]:
    texts = [self.vocab.decode(list(chunk)) for chunk in chunks]
    return self.retriever.find(texts, shape.num_neighbours)

  def _window(self, neighbours: Sequence[Neighbour], shape: _Shape) -> _Window:
    texts, R = [n.tokens for n in neighbours], 2 * self.config.chunk_len
    return as_windows(texts, shape.num_neighbours, R, self.vocab.pad_id)


@functools.lru_cache(maxsize=4)
def _decoder(model: Retro, end_ids: tuple[int, ...]) -> DecodingLoop:
  """Checkpoints of one model share what is compiled."""
  return DecodingLoop(model, end_ids, TOKENS_PER_CALL)


def _sampling(requests: Sequence[Request]) -> Sampling:
  """Settings of the rows, None where no row uses them."""

  def column(name: str, neutral: float, dtype: type) -> np.ndarray | None:
    values = [getattr(request, name) for request in requests]
    return None if all(v == neutral for v in values) else np.array(values, dtype)

  temperature_B = column('temperature', 0, np.float32)
  penalty_B = column('penalty', 1, np.float32)
  if temperature_B is None:
    return Sampling(penalty_B=penalty_B)
  return Sampling(
    seed_B=np.array([request.seed for request in requests], np.uint32),
    temperature_B=temperature_B,
    top_k_B=column('top_k', 0, np.int32),
    top_p_B=column('top_p', 1, np.float32),
    penalty_B=penalty_B,
  )


def _stacked(windows: Sequence[_Window]) -> _Window:
  tokens, masks = zip(*windows)
  return np.stack(tokens), np.stack(masks)

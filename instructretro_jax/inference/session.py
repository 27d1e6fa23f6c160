"""From what a user gives (a folder, a question, passages) to text and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
from pathlib import Path

from rich.table import Table
from rich.text import Text

from instructretro_jax.inference.answer import Request
from instructretro_jax.inference.loading import find_vocabulary, load_sampler
from instructretro_jax.inference.sampler import BATCH_SIZE, Sampler
from instructretro_jax.inference.score import Score
from instructretro_jax.model.sharding import MeshConfig
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.questions.prompts import format_of
from instructretro_jax.retrieval.retriever import open_retriever


def open_sampler(
  folder: Path,
  index: Path | None,
  gate: float | None,
  tensor: int = 1,
  *,
  with_encoder: bool = False,
  batch_size: int = BATCH_SIZE,
) -> tuple[Sampler, float]:
  """The sampler of a checkpoint, and the gate: `gate_of` what is given.

  Args:
    tensor: devices of this machine that share each parameter.
    with_encoder: whether it is loaded, if there is one, though this gate is closed.

  Raises StageError as `load_sampler` and `open_retriever` do, or if there is no encoder for an
  open gate.
  """
  gate = gate_of(gate, index)
  retriever = None if index is None else open_retriever(index, find_vocabulary(folder))
  sampler = load_sampler(
    folder,
    with_encoder=with_encoder or gate != 0,
    retriever=retriever,
    batch_size=batch_size,
    mesh=MeshConfig(data=1, tensor=tensor),
  )
  if gate != 0 and not sampler.has_encoder:
    raise StageError(f'{folder} has no encoder: its gate stays closed, so give --gate=0')
  return sampler, gate


def gate_of(gate: float | None, index: Path | None) -> float:
  """The gate that is given; else open if there is an index."""
  return float(index is not None) if gate is None else gate


def make_request(
  sampler: Sampler,
  template: Request,
  text: str,
  passages: Sequence[str] = (),
  history: Sequence[tuple[str, str]] | None = None,
) -> Request:
  """A request like the template, whose prompt is the passages and then a text.

  If the gate is open and there is no retriever, the encoder reads the passages as well.

  Args:
    history: questions and answers before, which make the text a question of a dialogue, put in the
      form of the model (`format_of`); None: the text is continued as it is.
  """
  stop = template.stop
  if history is None:
    prompt = '\n\n'.join([*passages, text])
  else:
    form = format_of(sampler.vocab)
    turns = [turn for pair in history for turn in pair]
    prompt, stop = form.frame([*turns, text], passages).text(), (*stop, *form.stop)
  reads_passages = template.gate != 0 and sampler.retriever is None
  neighbours = tuple(passages) if reads_passages else template.neighbours
  return dataclasses.replace(template, prompt=prompt, stop=stop, neighbours=neighbours)


class Dialogue:
  """Questions and answers in turn; the oldest are forgotten when the model has no room for them."""

  def __init__(self, sampler: Sampler, template: Request, passages: Sequence[str] = ()):
    self._generator, self._template, self._passages = sampler, template, passages
    self._history: list[tuple[str, str]] = []

  def ask(self, question: str) -> Iterator[str]:
    """Yields the answer in pieces. Raises ValueError if the question alone is too long."""
    room = self._generator.config.decoder.max_len - self._template.max_new
    while True:
      request = make_request(
        self._generator, self._template, question, self._passages, self._history
      )
      num_tokens = len(self._generator.tokenize(request.prompt))
      if num_tokens <= room:
        break
      if not self._history:
        raise ValueError(f'the question is {num_tokens} tokens, and there is room for {room}')
      del self._history[0]
    answer = yield from self._generator.stream(request)
    self._history.append((question, answer.text))


def score_tables(found: Score) -> list[Table]:
  """The tokens with their log-probabilities, and the neighbours used."""
  tokens = Table('token', 'gate off', title='log-probability of each token, nats')
  columns = [found.closed]
  if found.opened is not None:
    for name in ('gate on', 'gain'):
      tokens.add_column(name)
    gain = [None if a is None else b - a for a, b in zip(found.closed, found.opened)]
    columns += [found.opened, gain]
  for piece, *values in zip(found.pieces, *columns):
    tokens.add_row(Text(repr(piece)), *('' if x is None else f'{x:.3f}' for x in values))
  means = [sum(x for x in column if x is not None) / (len(column) - 1) for column in columns]
  tokens.add_section()
  tokens.add_row('mean', *(f'{mean:.3f}' for mean in means))
  if found.opened is None:
    return [tokens]
  neighbours = Table('chunk', 'neighbour', 'score', 'text', title='neighbours, for the next chunk')
  for chunk, members in enumerate(found.neighbours):
    for n in members:
      place = n.document if n.chunk_id is None else f'{n.document}, chunk {n.chunk_id}'
      neighbours.add_row(str(chunk), Text(place), f'{n.score:.3f}', Text(n.text))
  return [tokens, neighbours]

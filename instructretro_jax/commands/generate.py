"""The commands `generate` and `score`. What they use is imported when they run."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import json
from pathlib import Path

import click

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
TENSOR = click.option(
  '--tensor', default=1, show_default=True, help='Devices here that share each weight.'
)
_ABOUT_INDEX = 'Run folder whose index is searched for neighbours while the text grows.'


@click.command()
@click.option('--checkpoint', required=True, type=_FOLDER, help='Folder of an arm, or imported.')
@click.option('--prompt', help='Text to continue.')
@click.option(
  '--prompts',
  'path',
  type=click.Path(exists=True, dir_okay=False, path_type=Path),
  help='JSON lines {"prompt": ...}; also "context", "seed" and the like, for that line alone.',
)
@click.option('--out', type=click.Path(path_type=Path), help='Where JSON lines go, if not here.')
@click.option('--chat', 'is_chat', is_flag=True, help='A prompt is a question to an assistant.')
@click.option('--context', 'passages', multiple=True, help='Passage ahead of the prompt.')
@click.option('--gate', type=float, help='Scale of the cross-attention; 1 with an index, else 0.')
@click.option('--index', type=_FOLDER, help=_ABOUT_INDEX)
@click.option('--retrieval_step', type=int, help='New tokens between searches; by default C.')
@click.option('--temperature', default=0.0, show_default=True, help='0: the most likely token.')
@click.option('--top_k', default=0, show_default=True, help='Tokens to draw from; 0: all.')
@click.option('--top_p', default=1.0, show_default=True, help='Probability to draw from.')
@click.option('--penalty', default=1.0, show_default=True, help='Of tokens that are there.')
@click.option('--seed', default=0, show_default=True, help='Of the draws.')
@click.option('--max_new', default=256, show_default=True, help='The most new tokens.')
@click.option('--stop', multiple=True, help='Text that ends an answer.')
@click.option('--stop_at_repetition', is_flag=True, help='End at a phrase said three times.')
@click.option('--batch_size', default=8, show_default=True, help='Prompts of a file at a time.')
@TENSOR
def generate(
  checkpoint, prompt, path, out, is_chat, passages, gate, index, batch_size, tensor, **settings
) -> None:
  """Continues a prompt or a file of prompts; without either, answers questions as they come.

  With the gate at 0, encoder and cross-attention are neither loaded nor computed. If it is open,
  the encoder reads neighbours of the last chunk from the index; without an index, the passages.

  \b
  Examples:
  instructretro generate --checkpoint=runs/smollm2_135m
  instructretro generate --checkpoint=runs/smollm2_135m --chat --prompt="What is a retriever?"
  instructretro generate --checkpoint=runs/smollm2_135m --prompts=prompts.jsonl --temperature=0.8
  instructretro generate --checkpoint=runs/quickstart/retro_fit --index=runs/quickstart \\
    --prompt="The name of the" --max_new=128
  """
  from instructretro_jax.inference import session
  from instructretro_jax.inference.answer import Request

  if prompt is not None and path is not None:
    raise click.UsageError('give --prompt or --prompts, not both')
  with _errors_in_words():
    sampler, gate = session.open_sampler(checkpoint, index, gate, tensor)
    sampler.batch_size = batch_size
    template = Request(prompt=(0,), gate=gate, **settings)
    if path is not None:
      requests = session.read_requests(path, sampler, template, passages, is_chat)
      answers = sampler.generate(requests, show_progress=True)
      rows = map(session.answer_json, requests, answers)
      with click.open_file(str(out) if out else '-', 'w', encoding='utf-8') as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
    elif prompt is not None:
      history = () if is_chat else None
      request = session.make_request(sampler, template, prompt, passages, history)
      _show(sampler.stream(request))
    else:
      dialogue = session.Dialogue(sampler, template, passages)
      click.echo('Ask; an empty line ends.', err=True)
      while question := click.prompt('>', prompt_suffix=' ', default='', show_default=False):
        _show(dialogue.ask(question))


@click.command()
@click.option('--checkpoint', required=True, type=_FOLDER, help='Folder of an arm, or imported.')
@click.option('--text', required=True, help='Text to score.')
@click.option('--index', type=_FOLDER, help='Run folder whose index is searched for neighbours.')
@click.option('--gate', default=1.0, show_default=True, help='Scale of the cross-attention if on.')
@click.option('--json', 'as_json', is_flag=True, help='Print JSON.')
@TENSOR
def score(checkpoint, text, index, gate, as_json, tensor) -> None:
  """Prints the log-probability of each token, gate off and, with an index, on.

  \b
  Examples:
  instructretro score --checkpoint=runs/quickstart/retro_fit --index=runs/quickstart \\
    --text="The name of the resource."
  instructretro score --checkpoint=runs/smollm2_135m --text="Paris is the capital of France."
  """
  from rich.console import Console

  from instructretro_jax.inference import score as scoring
  from instructretro_jax.inference import session

  with _errors_in_words():
    sampler, gate = session.open_sampler(checkpoint, index, gate if index else 0.0, tensor)
    found = scoring.score(sampler, text, gate)
  if as_json:
    click.echo(json.dumps(found.to_json(), ensure_ascii=False))
    return
  for table in session.score_tables(found):
    Console().print(table)


def _show(pieces: Iterator[str]) -> None:
  """Prints pieces as they come, then a line end."""
  for piece in pieces:
    click.echo(piece, nl=False)
  click.echo()


@contextlib.contextmanager
def _errors_in_words() -> Iterator[None]:
  """A request that cannot be met is a line on stderr, not a traceback."""
  from instructretro_jax.pipeline.manifest import StageError

  try:
    yield
  except ValueError as error:
    raise StageError(str(error)) from error

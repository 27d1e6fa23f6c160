"""The commands `generate` and `score`. What they use is imported when they run."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import errno
import json

import click

from instructretro_jax.commands.paths import ANY, EXISTING_FILE, EXISTING_FOLDER

TENSOR = click.option(
  '--tensor', default=1, show_default=True, help='Devices here that share each weight.'
)
_ABOUT_INDEX = 'Run folder whose index is searched for neighbours while the text grows.'


@click.command()
@click.option(
  '--checkpoint', required=True, type=EXISTING_FOLDER, help='Folder of an arm, or imported.'
)
@click.option('--prompt', help='Text to continue.')
@click.option(
  '--prompts',
  'path',
  type=EXISTING_FILE,
  help='JSON lines {"prompt": ...}; also "id", "context", "seed" and the like of that line alone.',
)
@click.option('--out', type=ANY, help='File for JSON lines, one a prompt.')
@click.option('--chat', 'is_chat', is_flag=True, help='A prompt is a question to an assistant.')
@click.option('--context', 'passages', multiple=True, help='Passage ahead of the prompt.')
@click.option('--gate', type=float, help='Scale of the cross-attention; 1 with an index, else 0.')
@click.option('--index', type=EXISTING_FOLDER, help=_ABOUT_INDEX)
@click.option('--retrieval_step', type=int, help='New tokens between searches; by default C.')
@click.option('--temperature', default=0.0, show_default=True, help='0: the most likely token.')
@click.option('--top_k', default=0, show_default=True, help='Tokens to draw from; 0: all.')
@click.option('--top_p', default=1.0, show_default=True, help='Probability to draw from.')
@click.option('--penalty', default=1.0, show_default=True, help='Of tokens that are there.')
@click.option(
  '--seed', default=0, show_default=True, help='Of the draws; each line of a file draws anew.'
)
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

  Answers to a file are written in its order, as they come. With --out, the same command goes on
  where an earlier one was ended. A prompt that the model has no room for gets a line with an
  "error", the others their answers, and the exit code is 1. With --seed, line n draws with a seed
  made of both; a line's own seed is taken as it is.

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
  from instructretro_jax.inference.batching import check_batch_size

  if prompt is not None and path is not None:
    raise click.UsageError('give --prompt or --prompts, not both')
  if out is not None and path is None:
    raise click.UsageError('--out is for the answers to --prompts')
  with _errors_in_words():
    template = Request(prompt=(0,), gate=session.gate_of(gate, index), **settings)
    check_batch_size(batch_size)
    opened = {'tensor': tensor, 'batch_size': batch_size}
    if path is not None:
      _answer_file(checkpoint, index, path, out, template, passages, is_chat, opened)
      return
    sampler, _ = session.open_sampler(checkpoint, index, template.gate, **opened)
    if prompt is not None:
      history = () if is_chat else None
      request = session.make_request(sampler, template, prompt, passages, history)
      _show(sampler.stream(request))
    else:
      dialogue = session.Dialogue(sampler, template, passages)
      click.echo('Ask; an empty line ends.', err=True)
      while question := click.prompt('>', prompt_suffix=' ', default='', show_default=False):
        _show(dialogue.ask(question))


def _answer_file(checkpoint, index, path, out, template, passages, is_chat, opened) -> None:
  """Answers a file of prompts: all of it is checked, and the output opened, before the model is."""
  from instructretro_jax.inference import prompt_files, session
  from instructretro_jax.inference.answer_file import open_answers
  from instructretro_jax.pipeline.manifest import StageError, read_manifest
  from instructretro_jax.train.checkpoint import Checkpoint

  lines = prompt_files.read_prompts(path, template, passages)
  database = None if index is None else read_manifest(index / 'index').fingerprint
  asked = (is_chat, Checkpoint(checkpoint).stamp, database)
  with open_answers(out, [line.digest(*asked) for line in lines]) as answers:
    if answers.num_done < len(lines):
      is_opened = any(line.settings.gate != 0 for line in lines)
      sampler, _ = session.open_sampler(
        checkpoint, index, template.gate, with_encoder=is_opened, **opened
      )
      requests, refused = prompt_files.requests_of(path, lines, sampler, is_chat)
      for row in prompt_files.answer_rows(lines, requests, refused, sampler, answers.num_done):
        answers.write(row)
    if answers.num_errors:
      raise StageError(
        f'{answers.num_errors} of the {len(lines)} prompts of {path} have no answer: their lines '
        'have an "error" that says why'
      )


@click.command()
@click.option(
  '--checkpoint', required=True, type=EXISTING_FOLDER, help='Folder of an arm, or imported.'
)
@click.option('--text', required=True, help='Text to score.')
@click.option(
  '--index', type=EXISTING_FOLDER, help='Run folder whose index is searched for neighbours.'
)
@click.option('--gate', type=float, help='Scale of the cross-attention, with an index; 1.')
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
  from instructretro_jax.inference.answer import Request
  from instructretro_jax.pipeline.notes import note

  with _errors_in_words():
    gate = Request(prompt=text, gate=session.gate_of(gate, index)).gate
    if index is None and gate != 0:
      note('the gate stays closed: without --index there are no neighbours to read')
      gate = 0.0
    sampler, _ = session.open_sampler(checkpoint, index, gate, tensor)
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
  """A request that cannot be met, or a file that cannot be used, is a line on stderr."""
  from instructretro_jax.pipeline.manifest import StageError, in_words

  try:
    yield
  except ValueError as error:
    raise StageError(str(error)) from error
  except OSError as error:
    if error.errno == errno.EPIPE:  # whoever read the answers has had enough
      raise
    raise StageError(in_words(error)) from error

"""The command line: `instructretro COMMAND --gin_file=F --gin.NAME=VALUE --root=DIR`."""

from __future__ import annotations

import sys

import click

from instructretro_jax.commands.compare import compare
from instructretro_jax.commands.demo import demo
from instructretro_jax.commands.generate import generate, score
from instructretro_jax.commands.inspect import inspect
from instructretro_jax.commands.lm_eval import lm_eval
from instructretro_jax.commands.precompile import precompile
from instructretro_jax.commands.run import run
from instructretro_jax.commands.sweep import sweep
from instructretro_jax.commands.verify import verify
from instructretro_jax.commands.weights import export, import_weights
from instructretro_jax.pipeline import caches, quiet


@click.group()
def main() -> None:
  """InstructRetro: from text to a Retro-fitted, instruction-tuned, evaluated model."""
  quiet.quieten()
  caches.keep_compiled()


for command in (
  run, sweep, verify, inspect, compare, generate, score, lm_eval, demo, import_weights, export,
  precompile,
):  # fmt: skip
  main.add_command(command)


def console() -> None:
  """Entry point: what a user can mend is one line on stderr and exit code 1, not a traceback."""
  from instructretro_jax.pipeline.hosts import PREEMPTED_STATUS, Preempted
  from instructretro_jax.pipeline.manifest import StageError, in_words
  from instructretro_jax.pipeline.paths import is_of_store

  try:
    main(standalone_mode=True)
  except StageError as error:
    click.echo(f'error: {error}', err=True)
    sys.exit(1)
  except Preempted as error:
    click.echo(error, err=True)
    sys.exit(PREEMPTED_STATUS)
  except OSError as error:
    click.echo(f'error: {in_words(error)}', err=True)
    sys.exit(1)
  except Exception as error:
    if not is_of_store(error):
      raise
    what = ' '.join(str(error).split()) or type(error).__name__
    click.echo(f'error: {what}: check the address, the credentials and the network', err=True)
    sys.exit(1)

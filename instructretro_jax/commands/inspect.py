"""The command `inspect`. What it uses is imported when it runs."""

from __future__ import annotations

from pathlib import Path

import click

from instructretro_jax.commands.paths import EXISTING_FOLDER


@click.command()
@click.argument('folder', type=EXISTING_FOLDER)
@click.option('--chunk', type=int, help='Print this chunk and its neighbours (run folder).')
@click.option(
  '--split',
  default='heldout',
  show_default=True,
  type=click.Choice(['train', 'heldout']),
  help='Split of --chunk.',
)
def inspect(folder: Path, chunk: int | None, split: str) -> None:
  """Prints a stage folder in words, or a chunk of a run folder with its neighbours.

  Of a stage with a checkpoint, also its parameters by group and its model.

  Examples: instructretro inspect runs/quickstart/index;
  instructretro inspect runs/quickstart --chunk=12
  """
  from instructretro_jax.commands import inspection

  if chunk is None:
    click.echo(inspection.describe_stage(folder))
  else:
    click.echo(inspection.describe_chunk(folder, split, chunk))

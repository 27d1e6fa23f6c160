"""The command `verify`. What it uses is imported when it runs."""

from __future__ import annotations

from pathlib import Path
import sys

import click

from instructretro_jax.commands.paths import EXISTING_FOLDER


@click.command()
@click.argument('root', type=EXISTING_FOLDER)
def verify(root: Path) -> None:
  """Reads a run, or one stage folder, again and compares it with what its stages wrote.

  Every listed file by its sha256, every checkpoint by that of its parameters, and every stage by
  the fingerprints of those it read. What is wrong is named; the exit code is 1 then.

  Example: instructretro verify runs/quickstart
  """
  from instructretro_jax.commands import verification

  wrong = 0
  for finding in verification.findings(root):
    click.echo(finding)
    wrong += 1
  if wrong:
    click.echo(f'{wrong} findings: rebuild with `instructretro run ... --rebuild=STAGE`', err=True)
    sys.exit(1)
  click.echo(f'{root}: all is as it was written')

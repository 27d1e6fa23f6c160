"""The command `sweep`. What it uses is imported when it runs."""

from __future__ import annotations

from collections.abc import Sequence
import contextlib
import shlex
import sys
import threading
from typing import TYPE_CHECKING

import click

from instructretro_jax.commands.compare import show
from instructretro_jax.commands.paths import FOLDER
from instructretro_jax.commands.run import GIN_FILES, GIN_OPTIONS, gin_bindings

if TYPE_CHECKING:
  from rich.table import Table

  from instructretro_jax.pipeline.sweep import Job


@click.command(context_settings=GIN_OPTIONS)
@GIN_FILES
@click.option('--root', type=FOLDER, default='runs/sweep', show_default=True, help='Its folder.')
@click.option(
  '--processes', type=click.IntRange(1), default=1, show_default=True, help='Jobs at a time.'
)
@click.option('--dry_run', is_flag=True, help='Say what would run, and run nothing.')
@click.pass_context
def sweep(context, gin_files, root, processes, dry_run) -> None:
  """Runs an experiment for every combination of some values, a root each below ROOT.

  Stages that are the same in all jobs are made once, in ROOT/shared, and linked. The same command
  again goes on: finished jobs are skipped. Overrides are given to all jobs, but for those of Sweep.
  The exit code is 1 if a job failed, and 75 if a machine is taken away.

  Example: instructretro sweep --gin_file=experiments/sweeps/quickstart_seeds.gin --processes=2
  """
  from instructretro_jax.commands import sweeping

  prepared = sweeping.prepare(gin_files, gin_bindings(context.args), root)
  if dry_run:
    for job in (*filter(None, [prepared.shared]), *prepared.jobs):
      click.echo(shlex.join(job.command()))
    return
  board = Board([job.name for job in prepared.jobs])
  with board.shown():
    status = sweeping.run(prepared, processes, board.tell)
  if status:
    sys.exit(status)
  _compare(prepared.jobs)


def _compare(jobs: Sequence[Job]) -> None:
  """Prints the comparison of those jobs that differ in seeds alone, or why there is none."""
  from instructretro_jax.pipeline.manifest import StageError
  from instructretro_jax.report import compare as comparison

  groups: dict[tuple[str, ...], list[Job]] = {}
  for job in jobs:
    is_seed = lambda binding: binding.partition(' = ')[0].casefold().endswith('seed')
    others = tuple(binding for binding in job.bindings if not is_seed(binding))
    groups.setdefault(others, []).append(job)
  for group in groups.values():
    click.echo(f'{", ".join(job.name for job in group)}:')
    try:
      show(comparison.compare([job.root for job in group]))
    except StageError as error:
      click.echo(f'not compared: {error}')


class Board:
  """What each job is at: a table on a terminal, elsewhere a line for each change. Of any thread."""

  def __init__(self, names: Sequence[str]):
    from rich.console import Console

    self._states = {name: ('waiting', '') for name in names}
    self._console = Console(stderr=True)
    self._lock = threading.Lock()

  @contextlib.contextmanager
  def shown(self):
    """Draws the table meanwhile, if there is a terminal."""
    from rich.live import Live

    if not self._console.is_terminal:
      yield
      return
    with Live(get_renderable=self._table, console=self._console):
      yield

  def tell(self, name: str, state: str, words: str) -> None:
    """Takes a change."""
    with self._lock:
      self._states[name] = (state, words)
      if not self._console.is_terminal:
        click.echo(f'{name}: {state}{words and ": "}{words}', err=True)

  def _table(self) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table('job', 'state', 'stage, or why')
    with self._lock:
      for name, (state, words) in self._states.items():
        table.add_row(name, state, escape(words))
    return table

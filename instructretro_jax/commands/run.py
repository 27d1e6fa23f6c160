"""The command `run`, and how gin files and overrides are given to it and to others."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import re
from typing import TYPE_CHECKING, Any

import click

from instructretro_jax.commands.paths import EXISTING_FOLDER, FOLDER

if TYPE_CHECKING:
  from instructretro_jax.pipeline.stage import Stage

GIN_OPTIONS = {'ignore_unknown_options': True, 'allow_extra_args': True}
GIN_FILES = click.option(
  '--gin_file',
  'gin_files',
  multiple=True,
  required=True,
  help='Experiment file; more files override or complete it, in their order. A file, given or '
  'included, is looked for in the working folder, in the folder of the file given, and among those '
  'that the package ships (in a checkout, from its root).',
)


def gin_bindings(arguments: list[str]) -> list[str]:
  """Turns `--gin.NAME=VALUE` into `NAME = VALUE`. Raises UsageError for anything else."""
  bindings = []
  for argument in arguments:
    name, equals, value = argument.removeprefix('--gin.').partition('=')
    if not argument.startswith('--gin.') or not equals:
      raise click.UsageError(f'{argument!r} is unknown; overrides look like --gin.NUM_STEPS=10')
    bindings.append(f'{name} = {value}')
  return bindings


@click.command(context_settings=GIN_OPTIONS)
@GIN_FILES
@click.option(
  '--root', type=FOLDER, default='runs/quickstart', show_default=True, help='Folder of the run.'
)
@click.option('--only', help='Stages to run, separated by commas.')
@click.option('--from', 'start', help='First stage to run.')
@click.option('--to', 'stop', help='Last stage to run.')
@click.option('--rebuild', help='Stages to make anew, with all that read them.')
@click.option(
  '--link',
  'links',
  type=EXISTING_FOLDER,
  multiple=True,
  help='Finished stage of another root, which is read in place of making it; more may be given.',
)
@click.option('--profile', help='START:STOP, steps of each arm of which a trace is written.')
@click.option('--dry_run', is_flag=True, help='Say what would run, and run nothing.')
@click.option(
  '--coordinator', envvar='JAX_COORDINATOR_ADDRESS', help='HOST:PORT of process 0, if many.'
)
@click.option('--num_processes', type=int, envvar='JAX_NUM_PROCESSES', help='How many there are.')
@click.option('--process_id', type=int, envvar='JAX_PROCESS_ID', help='Which this is, from 0.')
@click.pass_context
def run(
  context,
  gin_files,
  root,
  only,
  start,
  stop,
  rebuild,
  links,
  profile,
  dry_run,
  coordinator,
  num_processes,
  process_id,
) -> None:
  """Brings the stages of an experiment up to date.

  On many hosts, the same command runs on each, with one --root that all of them see. TPU pods,
  Slurm and Open MPI are recognised; elsewhere, give the last three options.

  Example: instructretro run --gin_file=experiments/quickstart/run.gin --gin.PRETRAIN_STEPS=100
  """
  from instructretro_jax.pipeline import experiment, gin_adapter, hosts, sharing, watch

  configured, operative = gin_adapter.configure(
    experiment.Experiment, gin_files, gin_bindings(context.args)
  )
  if profile is not None:
    configured = experiment.Experiment(_profiled(configured.stages, profile))
  chosen = {'only': _split(only), 'start': start, 'stop': stop, 'rebuild': _split(rebuild)}
  configured.select(only=[folder.name for folder in links])
  if dry_run:
    missing = sharing.unlinked(links, root)
    linked = {folder.name: f'would be linked to {folder}' for folder in missing}
    for status in experiment.outcome(configured, root, **chosen):
      name = status.member.name
      click.echo(f'{name}: {linked.get(name, status.words)}')
    return
  here = hosts.join(coordinator, num_processes, process_id)
  with watch.watched(here):
    here.on_main(lambda: sharing.link(links, root))
    experiment.run(configured, root, **chosen, operative=operative, log=click.echo, hosts=here)


def _profiled(stages: Sequence[Stage], profile: str) -> tuple[Stage, ...]:
  """The stages, those that can be traced with these steps. Raises UsageError if there are none."""
  steps = re.fullmatch(r'(\d+):(\d+)', profile)
  if steps is None or not 1 <= int(steps[1]) <= int(steps[2]):
    raise click.UsageError(f'--profile={profile}: give two steps such as 20:25, counted from 1')
  if not any(hasattr(stage, 'profile') for stage in stages):
    raise click.UsageError('--profile: no stage of this experiment trains')
  given: dict[str, Any] = {'profile': (int(steps[1]), int(steps[2]))}
  return tuple(
    dataclasses.replace(stage, **given) if hasattr(stage, 'profile') else stage for stage in stages
  )


def _split(names: str | None) -> tuple[str, ...]:
  return tuple(names.split(',')) if names else ()

"""The command `precompile`. What it uses is imported when it runs."""

from __future__ import annotations

import json
import os

import click

from instructretro_jax.commands.paths import ANY
from instructretro_jax.commands.run import GIN_FILES, GIN_OPTIONS, gin_bindings


@click.command(context_settings=GIN_OPTIONS)
@GIN_FILES
@click.option('--topology', required=True, help='Chips, e.g. v5p:4x8x8, v5e:16x16 or h100:4x8.')
@click.option(
  '--step',
  default='train',
  show_default=True,
  type=click.Choice(['train', 'decode', 'instruct']),
  help='What is compiled: a step of training on text, one token, a step of instruction tuning.',
)
@click.option('--arm', help='Arm of the experiment; by default the last that the step fits.')
@click.option('--batch_size', type=int, help='Sequences a step, if not those of the arm.')
@click.option('--json', 'target', type=ANY, help='Write all figures here.')
@click.option('--hlo', type=ANY, help='Write the compiled program here.')
@click.pass_context
def precompile(context, gin_files, topology, step, arm, batch_size, target, hlo) -> None:
  """Compiles a step for accelerators that are not here: does it fit, and how fast is it at best?

  Needs the compiler of the extra tpu or gpu, and no accelerator. All figures are static estimates.
  Paths that the experiment must choose need not be given.

  Example: instructretro precompile --gin_file=experiments/paper/retrofit.gin
  --gin_file=gin/paper/retro_48b.gin --topology=v5p:4x8x8 --json=retro_48b.json
  """
  os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'  # what was kept says nothing of its memory
  os.environ['JAX_PLATFORMS'] = 'cpu'  # what is here compiles, and is not asked to run
  from rich.console import Console

  from instructretro_jax.pipeline import gin_adapter, manifest
  from instructretro_jax.pipeline.atomic import check_place
  from instructretro_jax.pipeline.experiment import Experiment
  from instructretro_jax.precompile import estimate, table

  for path in filter(None, (target, hlo)):
    check_place(path)
  configured, _ = gin_adapter.configure(
    Experiment, gin_files, gin_bindings(context.args), placeholder='not needed'
  )
  figures = estimate.precompile(
    configured, topology, step=step, arm_name=arm, batch_size=batch_size, hlo_path=hlo
  )
  console = Console()
  console.print(table.table(figures))
  if figures['operations']:
    console.print(table.operations_table(figures))
  if target is not None:
    manifest.write_text(target, json.dumps(figures, indent=1) + '\n')

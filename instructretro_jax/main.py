"""The command line: `instructretro COMMAND --gin_file=F --gin.NAME=VALUE --root=DIR`."""

from __future__ import annotations

import os
from pathlib import Path
import sys

import click

from instructretro_jax.inference import commands
from instructretro_jax.web.commands import demo

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # before anything imports TensorFlow
os.environ.setdefault('TQDM_MININTERVAL', '1')  # seconds; a log file keeps every redraw of a bar

_GIN_OPTIONS = {'ignore_unknown_options': True, 'allow_extra_args': True}


@click.group()
def main() -> None:
  """InstructRetro: from text to a Retro-fitted, instruction-tuned, evaluated model."""


main.add_command(commands.generate)
main.add_command(commands.score)
main.add_command(demo)


def _split(names: str | None) -> tuple[str, ...]:
  return tuple(names.split(',')) if names else ()


def gin_bindings(arguments: list[str]) -> list[str]:
  """Turns `--gin.NAME=VALUE` into `NAME = VALUE`. Raises UsageError for anything else."""
  bindings = []
  for argument in arguments:
    name, equals, value = argument.removeprefix('--gin.').partition('=')
    if not argument.startswith('--gin.') or not equals:
      raise click.UsageError(f'{argument!r} is unknown; overrides look like --gin.NUM_STEPS=10')
    bindings.append(f'{name} = {value}')
  return bindings


@main.command(context_settings=_GIN_OPTIONS)
@click.option('--gin_file', 'gin_files', multiple=True, required=True, help='Experiment file.')
@click.option('--root', default='runs/quickstart', show_default=True, help='Folder of the run.')
@click.option('--only', help='Stages to run, separated by commas.')
@click.option('--from', 'start', help='First stage to run.')
@click.option('--rebuild', help='Stages to make anew, with all that read them.')
@click.option('--dry_run', is_flag=True, help='Say what would run, and run nothing.')
@click.option(
  '--coordinator', envvar='JAX_COORDINATOR_ADDRESS', help='HOST:PORT of process 0, if many.'
)
@click.option('--num_processes', type=int, envvar='JAX_NUM_PROCESSES', help='How many there are.')
@click.option('--process_id', type=int, envvar='JAX_PROCESS_ID', help='Which this is, from 0.')
@click.pass_context
def run(
  context, gin_files, root, only, start, rebuild, dry_run, coordinator, num_processes, process_id
) -> None:
  """Brings the stages of an experiment up to date.

  On many hosts, the same command runs on each, with one --root that all of them see. TPU pods,
  Slurm and Open MPI are recognised; elsewhere, give the last three options.

  Example: instructretro run --gin_file=experiments/quickstart/run.gin --gin.PRETRAIN_STEPS=100
  """
  from instructretro_jax import gin_adapter, hosts, manifest, pipeline, stage

  files = [_found(name, gin_adapter.REPOSITORY) for name in gin_files]
  experiment, operative = gin_adapter.configure(
    pipeline.Experiment, files, gin_bindings(context.args)
  )
  folder = Path(root)
  if dry_run:
    for member in experiment.select(_split(only), start):
      click.echo(f'{member.name}: {stage.outlook(member, folder)}')
    return
  here = hosts.join(coordinator, num_processes, process_id)
  here.on_main(lambda: manifest.write_text(folder / 'operative_config.gin', operative))
  pipeline.run(
    experiment,
    folder,
    only=_split(only),
    start=start,
    rebuild=_split(rebuild),
    say=click.echo,
    hosts=here,
  )


@main.command()
@click.argument('folder', type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option('--chunk', type=int, help='Print this chunk and its neighbours (run folder).')
@click.option('--split', default='heldout', show_default=True, help='Split of --chunk.')
def inspect(folder: Path, chunk: int | None, split: str) -> None:
  """Prints a stage folder in words, or a chunk of a run folder with its neighbours.

  Of a stage with a checkpoint, also its parameters by group and its model.

  Examples: instructretro inspect runs/quickstart/index;
  instructretro inspect runs/quickstart --chunk=12
  """
  from instructretro_jax import inspection

  if chunk is None:
    click.echo(inspection.describe_stage(folder))
  else:
    click.echo(inspection.describe_chunk(folder, split, chunk))


@main.command()
@click.argument(
  'roots', nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option('--baseline', default='gpt_fit', show_default=True, help='Arm without retrieval.')
@click.option('--json', 'target', type=click.Path(path_type=Path), help='Write all numbers here.')
def compare(roots: tuple[Path, ...], baseline: str, target: Path | None) -> None:
  """Prints perplexities of runs that differ in their seed: means and spread.

  Example: instructretro compare runs/long/0 runs/long/1 runs/long/2 --json=long.json
  """
  import json

  from rich.console import Console

  from instructretro_jax import manifest
  from instructretro_jax.report import compare as comparison
  from instructretro_jax.report.tables import for_console

  found = comparison.compare(roots, baseline=baseline)
  console = Console()
  for table in comparison.tables(found):
    console.print(for_console(table))
  if target is not None:
    manifest.write_text(target, json.dumps(found, indent=1) + '\n')


@main.command('import')
@click.option('--source', required=True, help='Hugging Face folder, .gguf, Megatron, or smollm2.')
@click.option('--out', required=True, type=click.Path(path_type=Path), help='Stage folder to make.')
@click.option('--tokenizer', help='tokenizer.json or SentencePiece .model, if not in the source.')
@click.option('--eos_token', help='Token that ends a document, if not the one the source names.')
def import_weights(source: str, out: Path, tokenizer: str | None, eos_token: str | None) -> None:
  """Makes a checkpoint of given weights; training starts from it, every command opens it.

  The source is a Hugging Face folder (GPT-2, Llama, Mistral, Qwen2, Qwen3), a GGUF file of the
  Llama architecture, a Megatron checkpoint, or the word smollm2 (SmolLM2-135M-Instruct, from a
  package).

  Example: instructretro import --source=tests/golden/hf/llama --out=runs/imported/llama
  """
  from instructretro_jax.interop import stage

  made = stage.import_alone(source, out, tokenizer, eos_token)
  click.echo(f'{out}: {made.counts["parameters"]:,} parameters from {made.counts["format"]}')


@main.command()
@click.option('--checkpoint', required=True, type=click.Path(exists=True, path_type=Path))
@click.option('--out', required=True, type=click.Path(path_type=Path), help='Folder to make.')
@click.option(
  '--format',
  'kind',
  default='huggingface',
  show_default=True,
  type=click.Choice(['huggingface', 'megatron']),
)
@click.option('--tokenizer', type=click.Path(exists=True, path_type=Path), help='tokenizer.json.')
def export(checkpoint: Path, out: Path, kind: str, tokenizer: Path | None) -> None:
  """Writes a checkpoint for other tools.

  As huggingface: the decoder alone, in a folder that transformers opens, with the tokenizer.json
  of the checkpoint's folder or the given one. As megatron: the whole model.

  Example: instructretro export --checkpoint=runs/imported/llama --out=runs/exported/llama
  """
  from instructretro_jax.interop import stage

  stage.export(checkpoint, out, kind, tokenizer)
  click.echo(f'{out}: written as {kind}')


@main.command(context_settings=_GIN_OPTIONS)
@click.option('--gin_file', 'gin_files', multiple=True, required=True, help='Experiment file.')
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
@click.option('--json', 'target', type=click.Path(path_type=Path), help='Write all figures here.')
@click.option('--hlo', type=click.Path(path_type=Path), help='Write the compiled program here.')
@click.pass_context
def precompile(context, gin_files, topology, step, arm, batch_size, target, hlo) -> None:
  """Compiles a step for accelerators that are not here: does it fit, and how fast is it at best?

  Needs the compiler of the extra tpu or gpu, and no accelerator. All figures are static estimates.
  Paths that the experiment must choose need not be given.

  Example: instructretro precompile --gin_file=experiments/paper/retro_48b/retrofit.gin
  --topology=v5p:4x8x8 --json=retro_48b.json
  """
  import json

  os.environ['JAX_PLATFORMS'] = 'cpu'  # what is here compiles, and is not asked to run
  from rich.console import Console

  from instructretro_jax import gin_adapter, manifest, pipeline
  from instructretro_jax.precompile import estimate, table

  files = [_found(name, gin_adapter.REPOSITORY) for name in gin_files]
  experiment, _ = gin_adapter.configure(
    pipeline.Experiment, files, gin_bindings(context.args), placeholder='not needed'
  )
  figures = estimate.precompile(
    experiment, topology, step=step, arm_name=arm, batch_size=batch_size, hlo_path=hlo
  )
  console = Console()
  console.print(table.table(figures))
  if figures['operations']:
    console.print(table.operations_table(figures))
  if target is not None:
    manifest.write_text(target, json.dumps(figures, indent=1) + '\n')


def _found(name: str, repository: Path) -> str:
  """A gin file as given, or as seen from the repository."""
  return name if Path(name).exists() else str(repository / name)


def console() -> None:
  """Entry point: a StageError is one line on stderr and exit code 1, not a traceback."""
  from instructretro_jax.manifest import StageError

  try:
    main(standalone_mode=True)
  except StageError as error:
    click.echo(f'error: {error}', err=True)
    sys.exit(1)

"""The command `lm_eval`: the lm-evaluation-harness, in which our checkpoints are models."""

from __future__ import annotations

import importlib.util
import sys

import click


# the harness has no plugins, so that its own command cannot find models of other packages
@click.command(
  'lm_eval', context_settings={'ignore_unknown_options': True, 'help_option_names': []}
)
@click.argument('arguments', nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def lm_eval(context, arguments) -> None:
  """Runs the lm-evaluation-harness (extra lm_eval) with the model `instructretro`.

  All arguments are those of its own command `lm_eval`, --help among them; --model_args are
  checkpoint, index, gate, tensor and max_length (docs/evaluation.md).

  \b
  Example:
  instructretro lm_eval --model=instructretro --tasks=arc_easy --batch_size=8 \\
    --model_args=checkpoint=runs/quickstart/retro_fit,index=runs/quickstart,gate=on
  """
  from instructretro_jax.pipeline.manifest import StageError

  if not arguments:
    click.echo(context.get_help())
    return
  if importlib.util.find_spec('lm_eval') is None:
    raise StageError("lm_eval is not installed: pip install 'instructretro-jax[lm_eval]'")
  from lm_eval.__main__ import cli_evaluate

  import instructretro_jax.evaluate.lm_eval_model  # noqa: F401 (registers the model)

  sys.argv = ['lm_eval', *arguments]
  cli_evaluate()

"""The command `compare`. What it uses is imported when it runs."""

from __future__ import annotations

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

import click

from instructretro_jax.commands.paths import ANY, EXISTING_FOLDER


@click.command()
@click.argument('roots', nargs=-1, required=True, type=EXISTING_FOLDER)
@click.option('--baseline', default='gpt_fit', show_default=True, help='Arm without retrieval.')
@click.option('--json', 'target', type=ANY, help='Write all numbers here.')
def compare(roots: tuple[Path, ...], baseline: str, target: Path | None) -> None:
  """Prints perplexities of runs that differ in their seed: means and spread.

  Example: instructretro compare runs/long/0 runs/long/1 runs/long/2 --json=long.json
  """
  from instructretro_jax.pipeline import manifest
  from instructretro_jax.pipeline.atomic import check_place
  from instructretro_jax.report import compare as comparison

  if target is not None:
    check_place(target)
  found = comparison.compare(roots, baseline=baseline)
  show(found)
  if target is not None:
    manifest.write_text(target, json.dumps(found, indent=1) + '\n')


def show(found: Mapping[str, Any]) -> None:
  """Prints the tables of a comparison."""
  from rich.console import Console

  from instructretro_jax.report import compare as comparison
  from instructretro_jax.report.tables import for_console

  console = Console()
  for table in comparison.tables(found):
    console.print(for_console(table))

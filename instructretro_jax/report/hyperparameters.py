"""What the arms were asked: where they differ, and what all of them have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any

from instructretro_jax.pipeline import manifest, settings
from instructretro_jax.report.tables import Cell, Table

Asked = Mapping[str, Mapping[str, Any]]  # by arm and setting


def read(root: Path, arms: Sequence[str]) -> dict[str, dict[str, Any]]:
  """The settings of finished stages, without their names; JSON-like."""
  found = {arm: settings.flat(manifest.read_manifest(root / arm).plan.arguments) for arm in arms}
  return {arm: {k: v for k, v in of.items() if k != 'name'} for arm, of in found.items()}


def tables(asked: Asked) -> tuple[Table, ...]:
  """A row for each setting: first those in which arms differ, a column an arm, then all others.

  A table without rows is left out.
  """
  names = list(dict.fromkeys(name for of in asked.values() for name in of))
  texts = {name: [_text(of, name) for of in asked.values()] for name in names}
  differ = [name for name in names if len(set(texts[name])) > 1]
  own = [(Cell(name), *map(Cell, texts[name])) for name in differ]
  common = [(Cell(name), Cell(texts[name][0])) for name in names if name not in differ]
  made = (
    Table('Settings in which arms differ', (Cell('setting'), *map(Cell, asked)), tuple(own)),
    Table('Settings of all arms', (Cell('setting'), Cell('value')), tuple(common)),
  )
  return tuple(table for table in made if table.rows)


def _text(of: Mapping[str, Any], name: str) -> str:
  """A value as JSON, but text without quotes; a dash where an arm has no such setting."""
  value = of.get(name)
  if name not in of or value is None:
    return '–'
  return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

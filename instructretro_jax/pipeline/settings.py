"""What stages were asked, flat: the value of each setting by a name such as 'optimizer.lr'."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import json
from pathlib import Path
from typing import Any

from instructretro_jax.pipeline import manifest


def flat(value: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """The values of nested mappings, by their names joined by dots; lists are values."""
  return dict(_flat(value, prefix))


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
  if not isinstance(value, Mapping):
    yield name, value
    return
  for key, inner in value.items():
    yield from _flat(inner, f'{name}.{key}' if name else str(key))


def history(folder: Path) -> dict[str, manifest.Plan]:
  """The plan of a stage, finished or begun, and those of all that it goes back to, by their names.

  A stage that is no longer there is left out.
  """
  found: dict[str, manifest.Plan] = {}
  waiting = [folder.name]
  while waiting:
    name = waiting.pop()
    plan = None if name in found else manifest.recorded_plan(folder.parent / name)
    if plan is not None:
      found[name] = plan
      waiting += plan.inputs
  return found


def hyperparameters(folder: Path) -> dict[str, bool | int | float | str]:
  """The settings of a stage, and those of all that it goes back to as 'stage.setting'.

  Those that decide only how the stage itself is computed are among them; what is None is not. What
  is no single value is in JSON.
  """
  found: dict[str, Any] = {}
  for name, plan in history(folder).items():
    is_own = name == folder.name
    found |= flat(plan.arguments, '' if is_own else name) | (dict(plan.execution) if is_own else {})
  is_single = lambda value: isinstance(value, (bool, int, float, str))
  given = {name: value for name, value in found.items() if value is not None}
  return {name: v if is_single(v) else json.dumps(v) for name, v in given.items()}

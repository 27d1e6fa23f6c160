"""Learning rates by group of parameters; a rate of 0 freezes."""

from __future__ import annotations

from collections.abc import Mapping
import difflib
import math
import re
from typing import Any

from flax import traverse_util
import jax
import numpy as np

from instructretro_jax.array_types import Params
from instructretro_jax.model.layer_groups import layer_paths
from instructretro_jax.model.param_groups import GROUPS, fits
from instructretro_jax.pipeline.manifest import StageError

Multipliers = tuple[tuple[str, float], ...]  # of a group, as in model/param_groups.py

_MOST_SHOWN = 4  # near misses


def check_multipliers(multipliers: Multipliers) -> None:
  """Raises ValueError for what is no group, or no multiplier."""
  for group, factor in multipliers:
    if group not in GROUPS:
      try:
        re.compile(group)
      except re.error as error:
        raise ValueError(f'lr_multipliers: {group!r} is no regular expression: {error}') from error
    if not (math.isfinite(factor) and factor >= 0):
      raise ValueError(f'lr_multipliers: {group!r} has {factor}, and 0 or more is needed')


def lr_multiplier(path: str, multipliers: Multipliers) -> float:
  """The multiplier of one parameter, with one entry a layer: that of the first group it is in."""
  return next((factor for group, factor in multipliers if fits(group, path)), 1.0)


def factors_of(path: str, param: Any, multipliers: Multipliers) -> float | np.ndarray:
  """The multiplier of an array as it is held: of stacked layers one each, to be broadcast."""
  factors = [lr_multiplier(name, multipliers) for name in layer_paths(path, param.shape)]
  if len(set(factors)) == 1:
    return factors[0]
  return np.array(factors, np.float32).reshape(-1, *[1] * (len(param.shape) - 1))


def split_trainable(
  params: Params, multipliers: Multipliers
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """Flat trainable and frozen parameters by path.

  Of layers that are stacked, those alone are frozen that are frozen in all; others do not move, but
  have gradients and moments.

  Raises StageError if a group has no parameter, or nothing would train.
  """
  flat = traverse_util.flatten_dict(params, sep='/')
  names = [name for path, x in flat.items() for name in layer_paths(path, x.shape)]
  for group, _ in multipliers:
    if not any(fits(group, name) for name in names):
      raise StageError(
        f'lr_multipliers: no parameter is in the group {group!r}; there are the names '
        f'{sorted(GROUPS)}, and paths such as {_near(group, names)}'
      )
  trainable = {path: x for path, x in flat.items() if np.any(factors_of(path, x, multipliers))}
  if not trainable:
    raise StageError(f'lr_multipliers {multipliers} freeze every parameter')
  return trainable, {path: x for path, x in flat.items() if path not in trainable}


def join_params(trainable: Mapping[str, jax.Array], frozen: Mapping[str, jax.Array]) -> Params:
  """The inverse of `split_trainable`."""
  return traverse_util.unflatten_dict({**trainable, **frozen}, sep='/')


def _near(group: str, names: list[str]) -> list[str]:
  """Paths with a part that is spelt nearly so, or the first ones."""
  word = max(re.findall(r'\w+', group), key=len, default='')
  parts = sorted({part for name in names for part in name.split('/')})
  close = difflib.get_close_matches(word, parts, n=_MOST_SHOWN, cutoff=0.5)
  found = [next(name for name in names if part in name.split('/')) for part in close]
  return list(dict.fromkeys(found or names))[:_MOST_SHOWN]

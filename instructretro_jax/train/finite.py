"""Whether a state can be gone on from."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from instructretro_jax.array_types import Array
from instructretro_jax.model.layer_groups import layer_paths
from instructretro_jax.model.param_groups import part_of
from instructretro_jax.train.step import TrainState


def not_finite(state: TrainState) -> str | None:
  """What the last update has spoilt, in words; None if all that it has changed is finite.

  The loss of a step is that before its update, so that it does not tell.
  """
  leaves = jax.tree_util.tree_leaves_with_path((state.trainable, state.opt_state))
  leaves = [(path, x) for path, x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
  finite = np.asarray(_are_finite([x for _, x in leaves]))
  if finite.all():
    return None
  path, x = leaves[int(np.argmin(finite))]
  return _in_words(path[0].idx == 1, path[-1], x.shape)


def _in_words(is_moment: bool, key: Any, shape: tuple[int, ...]) -> str:
  if not isinstance(key, jax.tree_util.DictKey):
    return f'{key} of the optimizer'
  part = part_of(layer_paths(key.key, shape)[0])
  return f'{"a moment of " if is_moment else ""}{key.key} ({part})'


@jax.jit
def _are_finite(arrays: list[Array]) -> Array:
  return jnp.stack([jnp.isfinite(x).all() for x in arrays])

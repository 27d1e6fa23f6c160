"""Parameters that are read when asked for, so that a model larger than memory can pass through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses

from flax import traverse_util
import numpy as np

from instructretro_jax.array_types import Params


@dataclasses.dataclass(frozen=True)
class LazyArray:
  """One parameter: what it will be, and the function that reads it."""

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]


LazyParams = Mapping[str, LazyArray]  # by path, 'decoder_0/mlp/up/kernel'


def read_all(lazy: LazyParams) -> Params:
  """All parameters, nested as the model takes them."""
  return traverse_util.unflatten_dict({p: x.read() for p, x in lazy.items()}, sep='/')

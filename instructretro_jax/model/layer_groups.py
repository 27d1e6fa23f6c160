"""How the layers of a decoder are grouped, so that a group that repeats is compiled once.

Parameters have two forms. One entry a layer (`decoder_9/mlp/...`) is what weights are read, written
and decoded in. With `scan_layers` the layers of a repeating group are stacked along a new first
axis (`decoder_9_to_47/layer_0/mlp/...`): what the training of deep models holds and saves.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from flax import traverse_util
import jax.numpy as jnp

from instructretro_jax.array_types import Params
from instructretro_jax.model.config import RetroConfig

_LONGEST_GROUP = 6  # layers
_STACKED = re.compile(r'decoder_(\d+)_to_(\d+)/layer_(\d+)/(.*)')


@dataclasses.dataclass(frozen=True)
class LayerGroup:
  """Layers `first`, `first + 1`, ...: `reads` says which of a group have cross-attention."""

  first: int
  reads: tuple[bool, ...]
  count: int = 1  # how often the group repeats

  @property
  def key(self) -> str:
    """Name of the group behind `decoder_`."""
    last = self.first + len(self.reads) * self.count - 1
    return str(self.first) if self.count == 1 else f'{self.first}_to_{last}'


def layer_groups(config: RetroConfig, scan_layers: bool) -> tuple[LayerGroup, ...]:
  """The groups in order: single layers, unless layers are scanned.

  The first layer with cross-attention stands alone, since the neighbours are encoded inside it.
  """
  retro, num_layers = config.retro_layers, config.decoder.num_layers
  reads = [n in retro for n in range(num_layers)]
  if not scan_layers:
    return tuple(LayerGroup(n, (reads[n],)) for n in range(num_layers))
  first = retro[0]
  return (
    *_repeats(reads[:first], 0),
    LayerGroup(first, (True,)),
    *_repeats(reads[first + 1 :], first + 1),
  )


def _repeats(reads: list[bool], first: int) -> list[LayerGroup]:
  """Greedily, the group that repeats over most layers; what does not repeat is single."""
  found, n = [], 0
  while n < len(reads):
    best = LayerGroup(first + n, (reads[n],))
    for length in range(1, _LONGEST_GROUP + 1):
      group, count = reads[n : n + length], 1
      while reads[n + count * length : n + (count + 1) * length] == group:
        count += 1
      if count > 1 and length * count > len(best.reads) * best.count:
        best = LayerGroup(first + n, tuple(group), count)
    found.append(best)
    n += len(best.reads) * best.count
  return found


def locate(path: str, config: RetroConfig, scan_layers: bool) -> tuple[str, int | None]:
  """Path and index under which a parameter of a layer is held; no index if not stacked."""
  layer, _, rest = path.partition('/')
  if not layer.startswith('decoder_'):
    return path, None
  n = int(layer.removeprefix('decoder_'))
  group = [s for s in layer_groups(config, scan_layers) if s.first <= n][-1]
  if group.count == 1:
    return path, None
  index, j = divmod(n - group.first, len(group.reads))
  return f'decoder_{group.key}/layer_{j}/{rest}', index


def layer_paths(path: str, shape: tuple[int, ...]) -> tuple[str, ...]:
  """Paths, with one entry a layer, of what an array holds: of as many layers as it stacks."""
  stacked = _STACKED.fullmatch(path)
  if stacked is None:
    return (path,)
  first, last, j = (int(n) for n in stacked.groups()[:3])
  period = (last - first + 1) // shape[0]
  return tuple(f'decoder_{first + n * period + j}/{stacked[4]}' for n in range(shape[0]))


def stack_layers(params: Params, config: RetroConfig, scan_layers: bool = True) -> Params:
  """Parameters with one entry a layer, in the form in which layers are held."""
  held: dict[str, Any] = {}
  flat = traverse_util.flatten_dict(params, sep='/')
  of_layer = {path: locate(path, config, scan_layers) for path in flat}
  for path, (name, index) in sorted(of_layer.items(), key=lambda item: item[1][1] or 0):
    if index is None:
      held[name] = flat[path]
    else:
      held.setdefault(name, []).append(flat[path])
  is_list = lambda x: isinstance(x, list)
  stacked = {name: jnp.stack(x) if is_list(x) else x for name, x in held.items()}
  return traverse_util.unflatten_dict(stacked, sep='/')


def unstack_layers(params: Params, config: RetroConfig, scan_layers: bool = True) -> Params:
  """The inverse of `stack_layers`."""
  flat, made = traverse_util.flatten_dict(params, sep='/'), {}
  num_layers = config.decoder.num_layers
  layers = [locate(f'decoder_{n}/', config, scan_layers) for n in range(num_layers)]
  for path, x in flat.items():
    found = [(n, index) for n, (name, index) in enumerate(layers) if path.startswith(name)]
    for n, index in found:
      rest = path.removeprefix(layers[n][0])
      made[f'decoder_{n}/{rest}'] = x if index is None else x[index]
    if not found:
      made[path] = x
  return traverse_util.unflatten_dict(made, sep='/')

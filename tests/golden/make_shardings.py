"""Writes shardings.json: where every parameter lies, on a small mesh and on one of paper size.

python -m tests.golden.make_shardings
"""

import json
import math
from pathlib import Path

from flax import traverse_util
import jax
from jax.sharding import AbstractMesh

from instructretro_jax.model.config import RetroConfig
from instructretro_jax.model.sharding import MESH_AXES
from instructretro_jax.pipeline import gin_adapter
from instructretro_jax.train.optimizer import AdamW
from instructretro_jax.train.state import abstract_params, abstract_state

PATH = Path(__file__).parent / 'shardings.json'
# model: data x fsdp x tensor, and whether layers are scanned
CASES = {'quickstart': ((2, 2, 2), False), 'retro_43b': ((4, 16, 8), True)}


def shardings(name: str, mesh_shape: tuple[int, ...], scan_layers: bool) -> dict:
  """'shape: mesh axes' by path, and the bytes of the whole state that a device holds."""
  config = gin_adapter.configure(RetroConfig, [f'gin/models/{name}.gin'])[0]
  mesh = AbstractMesh(mesh_shape, MESH_AXES)
  params = abstract_params(config, True, mesh, scan_layers=scan_layers)
  state, _ = abstract_state(params, AdamW(learning_rate=1.0), 1)
  size = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
  describe = lambda x: f'{list(x.shape)}: {[axis or "whole" for axis in x.sharding.spec]}'
  flat = traverse_util.flatten_dict(params, sep='/')
  return {
    'mesh': dict(zip(MESH_AXES, mesh_shape)),
    'state_bytes_per_device': sum(map(size, jax.tree.leaves(state))),
    'parameters': {path: describe(x) for path, x in sorted(flat.items())},
  }


def all_cases() -> dict:
  return {name: shardings(name, *case) for name, case in CASES.items()}


if __name__ == '__main__':
  PATH.write_text(json.dumps(all_cases(), indent=1) + '\n')

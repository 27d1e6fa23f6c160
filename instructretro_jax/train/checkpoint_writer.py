"""Writes imported weights as a checkpoint of the training stage, one parameter at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
import numpy as np
import orbax.checkpoint as ocp

from instructretro_jax.model.config import RetroConfig
from instructretro_jax.model.execution import Execution
from instructretro_jax.model.param_groups import has_retrieval
from instructretro_jax.model.sharding import MeshConfig, make_mesh, param_shardings
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.train.checkpoint import model_record
from instructretro_jax.train.checkpoint_place import Place
from instructretro_jax.train.lazy_params import LazyArray, LazyParams
from instructretro_jax.train.state import init_params


@dataclasses.dataclass(frozen=True)
class _Placed:
  """A leaf for Orbax: an array to be read, and where it goes."""

  lazy: LazyArray
  sharding: Sharding

  @property
  def shape(self) -> tuple[int, ...]:
    return self.lazy.shape

  @property
  def dtype(self) -> np.dtype:
    return self.lazy.dtype

  def read(self) -> jax.Array:
    whole = self.lazy.read()
    return jax.make_array_from_callback(whole.shape, self.sharding, lambda index: whole[index])


class _PlacedHandler(ocp.type_handlers.ArrayHandler):
  """Saves each `_Placed` as the array it reads, and holds one of them at a time.

  Orbax takes a tree whose arrays all exist, but lets a type of leaf bring its own handler: that is
  its public way in. (Writing TensorStore files in Orbax's layout would tie us to that layout.) The
  handler bears `ArrayHandler`'s own name, so the checkpoint is like any other and restores without
  this class.
  """

  def __init__(self):
    # the list of all arrays would be written anew, with one array in it, for each array
    super().__init__(array_metadata_store=None)

  async def serialize(
    self,
    values: Sequence[_Placed],
    infos: Sequence[ocp.type_handlers.ParamInfo],
    args: Sequence[ocp.SaveArgs] | None = None,
  ) -> Sequence[ocp.future.Future]:
    for value, info, arg in zip(values, infos, args or [ocp.SaveArgs()] * len(values)):
      array = value.read()
      for written in await super().serialize([array], [info], [arg]):
        await asyncio.to_thread(written.result)
      array.delete()  # Orbax's futures keep references to it for a while
    return []


def write_checkpoint(
  stage_folder: Path,
  config: RetroConfig,
  params: LazyParams,
  record: dict[str, Any],
  mesh: Mesh | None = None,
) -> None:
  """Writes STAGE_FOLDER/checkpoints/0 as training would have; `Checkpoint` opens it.

  Host memory stays near the largest parameter: a parameter is read, placed, written, dropped. The
  checkpoint appears whole or not at all. Every process of the run makes the same call.

  Args:
    params: all parameters, or those of the decoder alone.
    record: what stands beside the state, such as the vocabulary's fingerprint; the model is added.
    mesh: decides in which pieces arrays are stored; all devices along `data` if not given.

  Raises StageError, before anything is written, if parameters do not fit the configuration.
  """
  abstract = jax.eval_shape(lambda: init_params(config, 0, has_retrieval(params.keys())))
  mesh = mesh or make_mesh(MeshConfig())
  shardings = traverse_util.flatten_dict(param_shardings(abstract, mesh), sep='/')
  _check(abstract, params)
  zero = LazyArray((), np.dtype(np.int32), lambda: np.zeros((), np.int32))
  state = {
    'step': _Placed(zero, NamedSharding(mesh, PartitionSpec())),
    'trainable': {path: _Placed(x, shardings[path]) for path, x in params.items()},
    'frozen': {},
    'opt_state': {},
  }
  registry = ocp.type_handlers.create_type_handler_registry((_Placed, _PlacedHandler()))
  handlers = {
    'state': ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
    'record': ocp.JsonCheckpointHandler(),
  }
  options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False)
  arguments = ocp.args.Composite(
    state=ocp.args.PyTreeSave(state),
    record=ocp.args.JsonSave({**record, **model_record(config, Execution())}),
  )
  with (
    contextlib.closing(Place(stage_folder / 'checkpoints')) as place,
    ocp.CheckpointManager(place.for_orbax, options=options, item_handlers=handlers) as manager,
  ):
    manager.save(0, args=arguments, force=True)
    place.keep(manager.wait_until_finished)
    place.wait()
    manager.wait_until_finished()


def _check(abstract: Any, params: LazyParams) -> None:
  wanted = traverse_util.flatten_dict(nn.unbox(abstract), sep='/')
  wanted = {path: x.shape for path, x in wanted.items()}
  found = {p: tuple(x.shape) for p, x in params.items()}
  if found != wanted:
    wrong = sorted(p for p in wanted.keys() | found.keys() if wanted.get(p) != found.get(p))
    lines = [f'  {p}: {found.get(p)}, expected {wanted.get(p)}' for p in wrong]
    raise StageError('parameters that do not fit the configuration:\n' + '\n'.join(lines))

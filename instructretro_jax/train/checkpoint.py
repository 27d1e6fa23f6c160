"""Checkpoints by Orbax: the state and, beside it, what is needed to use it alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from flax import traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp

from instructretro_jax import manifest
from instructretro_jax.array_types import Params
from instructretro_jax.lazy_params import LazyArray, LazyParams
from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.model.segments import one_by_one, unstack_layers
from instructretro_jax.train.step import TrainState


class Checkpoints:
  """The checkpoints of one training run; each is complete or absent.

  A checkpoint holds the state and a JSON record: the model's configuration, the vocabulary's
  fingerprint, and the seed of the data with the position after the last example seen.
  """

  def __init__(self, folder: Path, keep: int = 2):
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
    self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def save(self, state: TrainState, record: dict[str, Any]) -> None:
    """Writes the state; returns when it is on disk."""
    arguments = ocp.args.Composite(
      state=ocp.args.StandardSave(_as_tree(state)), record=ocp.args.JsonSave(record)
    )
    self._manager.save(int(state.step), args=arguments, force=True)
    self._manager.wait_until_finished()

  def restore(self, abstract: TrainState) -> TrainState:
    """The latest state, placed as the shardings of `abstract` say."""
    arguments = ocp.args.Composite(state=ocp.args.StandardRestore(_as_tree(abstract)))
    restored = self._manager.restore(self._manager.latest_step(), args=arguments)['state']
    return TrainState(**restored)

  def close(self) -> None:
    self._manager.close()


def load_params(stage_folder: Path) -> tuple[RetroConfig, Params, dict[str, Any]]:
  """Model configuration, parameters and record of a finished (or begun) training stage.

  Parameters are host arrays, whatever devices wrote them, with one entry a layer, even if layers
  were scanned; the optimiser's state is not read.

  Raises StageError if the folder has no checkpoint.
  """
  step = _latest(stage_folder)
  with ocp.PyTreeCheckpointer() as checkpointer:
    whole = checkpointer.metadata(step / 'state').item_metadata.tree
    wanted = {name: whole[name] for name in ('trainable', 'frozen')}
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=on_host, partial_restore=True)
    tree = checkpointer.restore(step / 'state', args=args)
  flat = {**tree['trainable'], **(tree['frozen'] or {})}
  record = load_record(stage_folder)
  config = config_from_json(record['model'])
  params = unstack_layers(traverse_util.unflatten_dict(flat, sep='/'), config)
  return one_by_one(config), params, record


def param_shapes(stage_folder: Path) -> tuple[RetroConfig, dict[str, tuple[int, ...]]]:
  """What `load_params` would return: the model's configuration, and shapes of parameters by path.

  Raises StageError if the folder has no checkpoint.
  """
  with ocp.StandardCheckpointer() as checkpointer:
    tree = checkpointer.metadata(_latest(stage_folder) / 'state').item_metadata.tree
  flat = {**tree['trainable'], **(tree['frozen'] or {})}
  config = config_from_json(load_record(stage_folder)['model'])
  held = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in flat.items()}
  nested = traverse_util.unflatten_dict(held, sep='/')
  params = jax.eval_shape(lambda params: unstack_layers(params, config), nested)
  flat = traverse_util.flatten_dict(params, sep='/')
  return one_by_one(config), {path: x.shape for path, x in flat.items()}


def load_record(stage_folder: Path) -> dict[str, Any]:
  """The record beside the latest checkpoint of a training stage."""
  return json.loads((_latest(stage_folder) / 'record' / 'metadata').read_text())


def _latest(stage_folder: Path) -> Path:
  folder = (stage_folder / 'checkpoints').absolute()
  steps = sorted(int(p.name) for p in folder.glob('[0-9]*') if p.name.isdigit())
  if not steps:
    raise manifest.StageError(f'{stage_folder} has no checkpoint: train it first')
  return folder / str(steps[-1])


def config_from_json(content: dict[str, Any]) -> RetroConfig:
  """The inverse of `manifest.to_json` for a model configuration."""
  fields = {k: v for k, v in content.items() if k != 'class'}
  fields['decoder'] = DecoderConfig(**{k: v for k, v in fields['decoder'].items() if k != 'class'})
  if fields['cross_attention_layers'] is not None:
    fields['cross_attention_layers'] = tuple(fields['cross_attention_layers'])
  return RetroConfig(**fields)


def params_sha256(params: Params | LazyParams) -> str:
  """Identifies parameters by path and bytes."""
  digest = hashlib.sha256()
  for path, x in sorted(traverse_util.flatten_dict(params, sep='/').items()):
    x = x.read() if isinstance(x, LazyArray) else x
    digest.update(path.encode() + b'\0' + np.asarray(x).tobytes())
  return digest.hexdigest()


def _as_tree(state: TrainState) -> dict[str, Any]:
  names = ('step', 'trainable', 'frozen', 'opt_state')
  return {name: getattr(state, name) for name in names}


def abstract_like(state: TrainState) -> TrainState:
  """Shapes, dtypes and shardings of a state, without its values."""
  describe = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
  return jax.tree.map(describe, state)

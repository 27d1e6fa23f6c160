"""Checkpoints by Orbax: the state and, beside it, what is needed to use it alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from flax import traverse_util
import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import orbax.checkpoint as ocp

from instructretro_jax.array_types import Params
from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.model.layer_groups import locate, one_by_one, unstack_layers
from instructretro_jax.pipeline import manifest
from instructretro_jax.train.lazy_params import LazyArray, LazyParams
from instructretro_jax.train.state import abstract_params
from instructretro_jax.train.step import TrainState

_PIECE_BYTES = 1 << 30  # of an array spread over processes that one of them holds at a time


class Checkpoints:
  """The checkpoints of one training run; each is complete or absent.

  Every process of the run makes the same calls: each writes and reads what its devices hold.

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
  were scanned; the optimiser's state is not read. Any process may call it alone.

  Raises StageError if the folder has no checkpoint.
  """
  step = _latest(stage_folder)
  with _open_alone() as checkpointer:
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


def load_for_use(
  stage_folder: Path, mesh: Mesh, with_encoder: bool = True
) -> tuple[RetroConfig, Params]:
  """Model configuration and parameters to evaluate or to decode with, each parameter on the devices
  that the rules of sharding.py give it, one entry a layer.

  The attention kernel is the plain one: what training had may not take short sequences, or not run
  here at all.

  Args:
    with_encoder: False reads no parameter of encoder and cross-attention.

  Raises StageError if the folder has no checkpoint.
  """
  config = one_by_one(config_from_json(load_record(stage_folder)['model']))
  config = dataclasses.replace(
    config, decoder=dataclasses.replace(config.decoder, attention='dot_product')
  )
  abstract = abstract_params(config, with_encoder and has_encoder(stage_folder), mesh)
  flat = traverse_util.flatten_dict(abstract, sep='/')
  found = restore_params(stage_folder, {path: x.sharding for path, x in flat.items()})
  return config, traverse_util.unflatten_dict(found, sep='/')


def restore_params(
  stage_folder: Path, shardings: Mapping[str, NamedSharding]
) -> dict[str, jax.Array]:
  """The parameters at these paths, read straight to the devices of their shardings; no others.

  Paths have one entry a layer; of scanned layers, whole stacks are read and taken apart. Every
  process that has some of the devices must call it. Raises StageError if the folder has no
  checkpoint, or the checkpoint lacks a path.
  """
  step, config = _latest(stage_folder), config_from_json(load_record(stage_folder)['model'])
  held = {}
  for path, sharding in shardings.items():
    name, index = locate(path, config)
    stacked = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
    held[name] = sharding if index is None else stacked
  processes = {d.process_index for s in shardings.values() for d in s.device_set}
  is_alone = processes == {jax.process_index()}
  with _open_alone() if is_alone else ocp.PyTreeCheckpointer() as checkpointer:
    whole = checkpointer.metadata(step / 'state').item_metadata.tree
    parts = {name: whole[name] or {} for name in ('trainable', 'frozen')}
    if missing := sorted(held.keys() - parts['trainable'].keys() - parts['frozen'].keys()):
      raise manifest.StageError(f'the checkpoint of {stage_folder} has no {missing[:4]}')
    wanted = {
      name: {path: x for path, x in part.items() if path in held} for name, part in parts.items()
    }
    place = lambda part: {path: ocp.ArrayRestoreArgs(sharding=held[path]) for path in part}
    where = {name: place(part) for name, part in wanted.items()}
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=where, partial_restore=True)
    tree = checkpointer.restore(step / 'state', args=args)
  flat = {**tree['trainable'], **(tree['frozen'] or {})}

  def pick(flat: dict[str, jax.Array]) -> dict[str, jax.Array]:
    single = unstack_layers(traverse_util.unflatten_dict(flat, sep='/'), config)
    flat = traverse_util.flatten_dict(single, sep='/')
    return {path: flat[path] for path in shardings}

  if one_by_one(config) == config:
    return flat
  return jax.jit(pick, out_shardings=dict(shardings))(flat)


def param_shapes(stage_folder: Path) -> tuple[RetroConfig, dict[str, tuple[int, ...]]]:
  """What `load_params` would return: the model's configuration, and shapes of parameters by path.

  Raises StageError if the folder has no checkpoint.
  """
  with _open_alone() as checkpointer:
    tree = checkpointer.metadata(_latest(stage_folder) / 'state').item_metadata.tree
  flat = {**tree['trainable'], **(tree['frozen'] or {})}
  config = config_from_json(load_record(stage_folder)['model'])
  held = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in flat.items()}
  nested = traverse_util.unflatten_dict(held, sep='/')
  params = jax.eval_shape(lambda params: unstack_layers(params, config), nested)
  flat = traverse_util.flatten_dict(params, sep='/')
  return one_by_one(config), {path: x.shape for path, x in flat.items()}


def has_encoder(stage_folder: Path) -> bool:
  """Whether the latest checkpoint of a training stage has a retrieval part."""
  return any(path.startswith('encoder') for path in param_shapes(stage_folder)[1])


def load_record(stage_folder: Path) -> dict[str, Any]:
  """The record beside the latest checkpoint of a training stage."""
  return json.loads((_latest(stage_folder) / 'record' / 'metadata').read_text())


def _open_alone() -> ocp.Checkpointer:
  """A reader that does not wait for other processes."""
  here = jax.process_index()
  options = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
  return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(), multiprocessing_options=options)


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
  """Identifies parameters by path and bytes; every process that holds a part must call it."""
  digest = hashlib.sha256()
  for path, x in sorted(traverse_util.flatten_dict(params, sep='/').items()):
    x = x.read() if isinstance(x, LazyArray) else x
    digest.update(path.encode() + b'\0')
    for piece in _on_host(x):
      digest.update(piece.tobytes())
  return digest.hexdigest()


def _on_host(x: np.ndarray | jax.Array) -> Iterator[np.ndarray]:
  """An array, whatever processes hold it: whole, or in slices along its first axis."""
  if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
    yield np.asarray(x)
    return
  rows = max(1, _PIECE_BYTES // (x.nbytes // len(x)))
  for start in range(0, len(x), rows):
    piece = jax.lax.dynamic_slice_in_dim(x, start, min(rows, len(x) - start))
    yield multihost_utils.process_allgather(piece, tiled=True)


def _as_tree(state: TrainState) -> dict[str, Any]:
  names = ('step', 'trainable', 'frozen', 'opt_state')
  return {name: getattr(state, name) for name in names}

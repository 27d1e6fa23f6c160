"""Checkpoints by Orbax: the state and, beside it, what is needed to use it alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
import json
from pathlib import Path
from typing import Any

from etils import epath
from flax import traverse_util
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import orbax.checkpoint as ocp

from instructretro_jax.array_types import Params
from instructretro_jax.model.config import RetroConfig
from instructretro_jax.model.execution import Execution
from instructretro_jax.model.layer_groups import locate, unstack_layers
from instructretro_jax.model.param_groups import has_retrieval
from instructretro_jax.model.retro import Retro
from instructretro_jax.pipeline import configuration, manifest, paths
from instructretro_jax.pipeline.notes import note
from instructretro_jax.train.checkpoint_place import Place, complete_steps, readable
from instructretro_jax.train.keep import LOSS, Keep
from instructretro_jax.train.state import abstract_params
from instructretro_jax.train.step import TrainState

_RECORD = Path('record', 'metadata')  # in the folder of a checkpoint


class Checkpoints:
  """The checkpoints of one training run; each is complete or absent.

  Every process of the run makes the same calls: each writes and reads what its devices hold.

  A checkpoint holds the state and a JSON record: the model's configuration and execution, the
  vocabulary's fingerprint, the numbers of steps that it was trained for (of each time that it was
  trained longer), and the seed of the data with the position after the last example seen.
  """

  def __init__(self, folder: Path, keep: Keep | None = None):
    keep = keep or Keep()
    options = ocp.CheckpointManagerOptions(
      preservation_policy=keep.policy(),
      cleanup_tmp_directories=True,  # of a save that was killed
    )
    self._folder, self._place = paths.absolute(folder), Place(folder)
    self._manager = ocp.CheckpointManager(self._place.for_orbax, options=options)

  def latest_step(self) -> int | None:
    """The step of the latest checkpoint, None if there is none."""
    return self._manager.latest_step()

  def save(self, state: TrainState, record: dict[str, Any], loss: float | None = None) -> None:
    """Begins to write the state, which may then be used up; the save before is awaited first.

    Args:
      loss: on held-out text, if it was measured.
    """
    self.wait()
    arguments = ocp.args.Composite(
      state=ocp.args.StandardSave(_as_tree(state)), record=ocp.args.JsonSave(record)
    )
    metrics = None if loss is None else {LOSS: loss}
    self._manager.save(int(state.step), args=arguments, metrics=metrics, force=True)
    self._place.keep(self._manager.wait_until_finished)

  def wait(self) -> None:
    """Returns when the last save is on disk, or in its store."""
    self._place.wait()
    self._manager.wait_until_finished()

  def restore(
    self, abstract_of: Callable[[bool], TrainState]
  ) -> tuple[TrainState, dict[str, Any]] | None:
    """The latest state and its record; None if there is none.

    One that is damaged is moved to logs/damaged and named, and the one before is taken.

    Args:
      abstract_of: shapes and shardings of the state, of whether its layers are stacked.

    Raises StageError if a damaged one has none before it, or on many hosts, of which not all may
    see the damage.
    """
    said = None
    while (step := self._manager.latest_step()) is not None:
      try:
        record = _read_record(self._folder / str(step))
        is_stacked = record['execution']['scan_layers']
      except (OSError, ValueError, KeyError, TypeError) as error:
        said = self._give_up(step, error)
        continue
      tree = _as_tree(abstract_of(is_stacked))
      arguments = ocp.args.Composite(state=ocp.args.StandardRestore(tree))
      try:
        return TrainState(**self._manager.restore(step, args=arguments)['state']), record
      except Exception as error:  # whatever a library makes of a file that is cut, empty or gone
        said = self._give_up(step, error)
    if said is not None:
      raise manifest.StageError(f'{said}, and there is none before it: train again')
    return None

  def _give_up(self, step: int, error: Exception) -> str:
    said = f'the checkpoint {self._folder / str(step)} cannot be read ({_first_line(error)})'
    if jax.process_count() > 1:
      raise manifest.StageError(f'{said}: remove it to go on from the one before') from error
    said += f': it is moved to {self._set_aside(step)}'
    note(said)
    return said

  def _set_aside(self, step: int) -> Path:
    target = self._folder.with_name('logs') / 'damaged' / str(step)
    self._place.set_aside(step, target)
    self._manager.reload()
    return target

  def close(self) -> None:
    """Returns when the last save is on disk, or in its store."""
    self._place.wait()
    self._manager.close()
    self._place.close()


def model_record(config: RetroConfig, execution: Execution) -> dict[str, Any]:
  """The part of a checkpoint's record that says what the model is, and how it was computed."""
  return {'model': configuration.to_json(config), 'execution': configuration.to_json(execution)}


class Checkpoint:
  """The latest checkpoint of a training stage's folder, or of an imported one, to be read.

  Paths of parameters have one entry a layer, also where layers were scanned.

  Raises StageError if the folder has no checkpoint, or one of an earlier form.
  """

  def __init__(self, stage_folder: Path):
    self._folder, self._step = stage_folder, _latest(stage_folder)

  @functools.cached_property
  def record(self) -> dict[str, Any]:
    """What stands beside the state; see `Checkpoints`."""
    try:
      record = _read_record(self._step)
    except (OSError, ValueError) as error:
      raise _damaged(self._step, error) from error
    if 'execution' not in record:
      raise manifest.StageError(
        f'{self._folder} holds a checkpoint of an earlier version, which recorded its model in '
        f'another form: train or import it again (--rebuild={self._folder.name} in an experiment)'
      )
    return record

  @property
  def stamp(self) -> str:
    """Changes when the folder gets another checkpoint, or its place; cheap, and no checksum."""
    record = self._step / _RECORD
    return f'{paths.resolved(record)} {paths.version_of(record)}'

  @functools.cached_property
  def _state(self) -> epath.Path:
    return readable(self._step) / 'state'

  @functools.cached_property
  def config(self) -> RetroConfig:
    """What changes the logits of the weights."""
    return configuration.from_json(RetroConfig, self.record['model'])

  @functools.cached_property
  def execution(self) -> Execution:
    """How the weights were trained."""
    return configuration.from_json(Execution, self.record['execution'])

  @functools.cached_property
  def _metadata(self) -> dict[str, dict[str, Any]]:
    try:
      with _open_alone() as checkpointer:
        tree = checkpointer.metadata(self._state).item_metadata.tree
      return {name: tree[name] or {} for name in ('trainable', 'frozen')}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
      raise _damaged(self._step, error) from error

  def param_shapes(self) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters by path."""
    flat = {path: x for part in self._metadata.values() for path, x in part.items()}
    held = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in flat.items()}
    single = jax.eval_shape(self._one_by_one, held)
    return {path: x.shape for path, x in single.items()}

  def has_encoder(self) -> bool:
    """Whether there is a retrieval part."""
    return has_retrieval(self.param_shapes().keys())

  def read(self) -> Params:
    """All parameters as host arrays, whatever devices wrote them. Any process may call it alone."""
    whole = self._metadata
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), whole)
    return traverse_util.unflatten_dict(self._one_by_one(self._read(whole, on_host)), sep='/')

  def restore(self, shardings: Mapping[str, NamedSharding]) -> dict[str, jax.Array]:
    """The parameters at these paths, read straight to the devices of their shardings; no others.

    Of scanned layers, whole stacks are read and taken apart. Every process that has some of the
    devices must call it. Raises StageError if the checkpoint lacks a path.
    """
    held, scan_layers = {}, self.execution.scan_layers
    for path, sharding in shardings.items():
      name, index = locate(path, self.config, scan_layers)
      stacked = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
      held[name] = sharding if index is None else stacked
    parts = self._metadata
    if missing := sorted(held.keys() - parts['trainable'].keys() - parts['frozen'].keys()):
      raise manifest.StageError(f'the checkpoint of {self._folder} has no {missing[:4]}')
    wanted = {n: {path: x for path, x in part.items() if path in held} for n, part in parts.items()}
    # Orbax takes no {} for what holds more
    wanted = {name: part for name, part in wanted.items() if part}
    place = lambda part: {path: ocp.ArrayRestoreArgs(sharding=held[path]) for path in part}
    where = {name: place(part) for name, part in wanted.items()}
    processes = {d.process_index for s in shardings.values() for d in s.device_set}
    flat = self._read(wanted, where, is_alone=processes == {jax.process_index()})
    if not scan_layers:
      return flat
    pick = lambda flat: {path: x for path, x in self._one_by_one(flat).items() if path in shardings}
    return jax.jit(pick, out_shardings=dict(shardings))(flat)

  def load_for_use(self, mesh: Mesh, with_encoder: bool = True) -> tuple[Retro, Params]:
    """The model to evaluate or to decode with, and its parameters on the devices of a mesh.

    Args:
      with_encoder: False reads no parameter of encoder and cross-attention.
    """
    abstract = abstract_params(self.config, with_encoder and self.has_encoder(), mesh)
    flat = traverse_util.flatten_dict(abstract, sep='/')
    found = self.restore({path: x.sharding for path, x in flat.items()})
    model = Retro(self.config, self.execution.for_use())
    return model, traverse_util.unflatten_dict(found, sep='/')

  def _one_by_one(self, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters by path with one entry a layer."""
    nested = traverse_util.unflatten_dict(flat, sep='/')
    single = unstack_layers(nested, self.config, self.execution.scan_layers)
    return traverse_util.flatten_dict(single, sep='/')

  def _read(self, wanted: Any, restore_args: Any, is_alone: bool = True) -> dict[str, Any]:
    with _open_alone() if is_alone else ocp.PyTreeCheckpointer() as checkpointer:
      args = ocp.args.PyTreeRestore(item=wanted, restore_args=restore_args, partial_restore=True)
      try:
        tree = checkpointer.restore(self._state, args=args)
      except (OSError, ValueError, KeyError) as error:
        raise _damaged(self._step, error) from error
    return {path: x for part in tree.values() for path, x in (part or {}).items()}


def _open_alone() -> ocp.Checkpointer:
  """A reader that does not wait for other processes."""
  here = jax.process_index()
  options = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
  return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(), multiprocessing_options=options)


def _read_record(checkpoint: Path) -> dict[str, Any]:
  return json.loads((checkpoint / _RECORD).read_text(encoding='utf-8'))


def _latest(stage_folder: Path) -> Path:
  folder = paths.absolute(stage_folder / 'checkpoints')
  steps = complete_steps(folder)
  if not steps:
    raise manifest.StageError(f'{stage_folder} has no checkpoint: train it first')
  return folder / str(steps[-1])


def _damaged(folder: Path, error: Exception) -> manifest.StageError:
  return manifest.StageError(
    f'the checkpoint {folder} cannot be read ({_first_line(error)}): remove that folder to use '
    'the one before, or train again'
  )


def _first_line(error: Exception) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _as_tree(state: TrainState) -> dict[str, Any]:
  names = ('step', 'trainable', 'frozen', 'opt_state')
  return {name: getattr(state, name) for name in names}

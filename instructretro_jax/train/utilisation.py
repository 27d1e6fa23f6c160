"""How long a step of an arm takes at least, for its model-FLOP utilisation."""

from __future__ import annotations

from typing import Any

from jax.sharding import Mesh

from instructretro_jax.model.flops import train_step_flops
from instructretro_jax.model.param_groups import is_retrieval
from instructretro_jax.model.peaks import peak_flops
from instructretro_jax.model.retro import is_open
from instructretro_jax.train.step import TrainState


def step_flops(
  arm: Any, state: TrainState, batch_size: int, *, count_masked: bool = False
) -> float:
  """Model FLOPs of a step of an arm (train/loop.py), all devices together.

  Args:
    state: of the arm, which may be abstract.
    count_masked: as of model/flops.py.
  """
  return train_step_flops(
    arm.model,
    batch_size=batch_size,
    seq_len=arm.task.seq_len,
    num_neighbours=arm.task.num_neighbours,
    is_open=is_open(arm.gate),
    is_decoder_frozen=not any(map(_is_decoder_layer, state.trainable)),
    count_masked=count_masked,
  ).total


def secs_at_peak(arm: Any, state: TrainState, mesh: Mesh) -> float | None:
  """Seconds of a step if all devices did nothing but model FLOPs, as fast as they can.

  None where that is not known: of other devices than model/peaks.py has, and of other activations
  than bfloat16, at which their peaks are.
  """
  peak = peak_flops(mesh.devices.flat[0].device_kind)
  if peak is None or arm.execution.dtype != 'bfloat16':
    return None
  return step_flops(arm, state, arm.batch_size) / (peak * mesh.size)


def _is_decoder_layer(path: str) -> bool:
  return path.startswith('decoder') and not is_retrieval(path)

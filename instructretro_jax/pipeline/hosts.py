"""Several processes as one run: how they meet, who writes, and where they wait for each other.

What ends them all where one fails is in watch.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import importlib.util
import json
import os
from pathlib import Path
from typing import TypeVar

import numpy as np

from instructretro_jax.pipeline.manifest import StageError

T = TypeVar('T')

PREEMPTED_STATUS = 75  # EX_TEMPFAIL of sysexits.h: run it again

_PAYLOAD_STEP = 1024  # bytes; messages of one padded length share what is compiled
_SHUTDOWN_SECS = 30  # that a process which ends waits for the others


class Preempted(Exception):
  """A machine is taken away; every process raises it, and what was done is saved."""


@dataclasses.dataclass(frozen=True)
class Hosts:
  """This process among those of the run. They share a file system; process 0 writes to it."""

  index: int = 0
  count: int = 1

  @classmethod
  def here(cls) -> Hosts:
    """As JAX has it; touches the devices."""
    import jax

    return cls(jax.process_index(), jax.process_count())

  @property
  def is_main(self) -> bool:
    """Whether this is process 0, which writes what is shared."""
    return self.index == 0

  def on_main(self, function: Callable[[], T]) -> T:
    """What `function` returns on process 0, given to every process; the others wait for it.

    All processes must make the same calls in the same order. What is returned must be JSON-like.
    A failure on process 0 is a StageError on the others.
    """
    if self.count == 1:
      return function()
    if not self.is_main:
      message = json.loads(self._broadcast(b''))
      if 'error' in message:
        raise StageError(message['error'])
      return message['value']
    try:
      value = function()
      message = json.dumps({'value': value})
    except BaseException as error:
      text = str(error) if isinstance(error, StageError) else f'process 0 failed: {error!r}'
      self._broadcast(json.dumps({'error': text}).encode())
      raise
    self._broadcast(message.encode())
    return value

  def wait(self) -> None:
    """Returns when every process has called it."""
    self.on_main(lambda: None)

  def _broadcast(self, content: bytes) -> bytes:
    """The content of process 0, on every process.

    It goes over the devices: a stage takes hours, and JAX's own barriers end after minutes.
    """
    from jax.experimental import multihost_utils

    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.zeros(-(-length // _PAYLOAD_STEP) * _PAYLOAD_STEP, np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(padded)[:length])


ONE = Hosts()  # a run of a single process


def join(
  coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> Hosts:
  """Meets the other processes, if there are any. Call it before anything touches a device.

  Given all three arguments, these decide. Given none, JAX asks the environment if a launcher has
  started several processes (Slurm, Open MPI) or there is a TPU. Otherwise this process is alone,
  and JAX is not even imported.

  Args:
    coordinator: host:port of process 0, for all processes the same.

  Raises StageError if only some arguments are given, or the processes do not meet.
  """
  given = (coordinator, num_processes, process_id)
  if None in given and given != (None, None, None):
    raise StageError(
      f'coordinator, num_processes and process_id go together: given are {coordinator!r}, '
      f'{num_processes}, {process_id}'
    )
  launcher = 'the arguments' if coordinator else launched_by(os.environ, has_tpu())
  if launcher is None:
    return ONE
  import jax

  try:
    jax.distributed.initialize(
      coordinator, num_processes, process_id, shutdown_timeout_seconds=_SHUTDOWN_SECS
    )
  except (ValueError, TypeError, RuntimeError) as error:
    raise StageError(
      f'the processes named by {launcher} did not meet: {error}. Give --coordinator=HOST:PORT, '
      '--num_processes and --process_id to each.'
    ) from error
  here = Hosts.here()
  if here.count > 1 and jax.default_backend() == 'cpu':
    # Programs on CPUs differ by process, and process 0 alone keeps its own. With one at hand it
    # would wait for those who compile, and Gloo ends that after 30 s.
    jax.config.update('jax_enable_compilation_cache', False)
  return here


def launched_by(environment: Mapping[str, str], is_on_tpu: bool) -> str | None:
  """What says that this process may be one of several, in words; None if nothing does."""
  for variable in ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE'):
    if int(environment.get(variable, '1')) > 1:
      return f'{variable}={environment[variable]}'
  return 'the TPU' if is_on_tpu else None


def has_tpu() -> bool:
  """Whether libtpu is installed and the machine shows a TPU; no device is opened."""
  nodes = [*Path('/dev').glob('accel[0-9]*'), *Path('/dev').glob('vfio/[0-9]*')]
  return bool(nodes) and importlib.util.find_spec('libtpu') is not None

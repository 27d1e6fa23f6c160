"""One process of some: WAY is raises_I, waits_I or is_slow_I, what process I does, or ends.

python -m tests.pipeline.watch_worker PORT COUNT INDEX ROOT WAY
"""

import ctypes
import dataclasses
from pathlib import Path
import sys
import time
from typing import ClassVar

import jax
from jax.experimental import multihost_utils
import numpy as np

from instructretro_jax import main as command_line
from instructretro_jax.pipeline import hosts, manifest, quiet, watch
from instructretro_jax.pipeline.experiment import Experiment
from instructretro_jax.pipeline.experiment import run as run_experiment
from instructretro_jax.pipeline.stage import Stage

SILENCE_SECS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meeting(Stage):
  """All processes wait for a sum over their devices, again and again."""

  on_all_hosts: ClassVar[bool] = True
  way: ClassVar[str]

  def build(self, root, folder):
    index = jax.process_index()
    for n in range(6):
      multihost_utils.process_allgather(np.int32(n))
      if n != 3:
        continue
      print('met', flush=True)
      if self.way == f'raises_{index}':
        raise manifest.StageError('the disk\nis full')
      if self.way == f'waits_{index}':
        time.sleep(3600)
      if self.way == f'is_slow_{index}':
        ctypes.PyDLL(None).sleep(3 * SILENCE_SECS)  # no other thread of Python runs meanwhile
    return {}


def main(port: str, count: str, index: str, root: str, way: str) -> None:
  here = hosts.join(f'localhost:{port}', int(count), int(index))
  Meeting.way = way
  with watch.watched(here, SILENCE_SECS):
    run_experiment(Experiment((Meeting(name='meeting'),)), Path(root), hosts=here)


if __name__ == '__main__':
  quiet.quieten()
  command_line.main = lambda standalone_mode: main(*sys.argv[1:])
  command_line.console()

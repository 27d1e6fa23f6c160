"""One process of two: a pipeline in which process 0 alone builds, and what each process finds.

python -m tests.pipeline.hosts_worker.py PORT INDEX ROOT
"""

import dataclasses
import json
from pathlib import Path
import sys
import time
from typing import ClassVar

from instructretro_jax.interop.stages import ImportWeights
from instructretro_jax.pipeline import hosts, manifest
from instructretro_jax.pipeline.experiment import Experiment
from instructretro_jax.pipeline.experiment import run as run_experiment
from instructretro_jax.pipeline.stage import Stage
from instructretro_jax.train.fingerprint import params_sha256
from tests.checkpoints import load_params

IMPORTED = ImportWeights(source=str(Path(__file__).parents[1] / 'golden' / 'hf' / 'llama'))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alone(Stage):
  """Built by process 0: `index` is who calls, and the others must not see it half done."""

  index: ClassVar[int]

  def build(self, root, folder):
    time.sleep(1)
    manifest.write_text(folder / 'built_by', str(Alone.index))
    return {'index': Alone.index}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Together(Stage):
  """Built by all processes; each leaves a file, which only a test would do."""

  on_all_hosts: ClassVar[bool] = True

  def reads(self):
    return ('alone',)

  def build(self, root, folder):
    built_by = (root / 'alone' / 'built_by').read_text()
    manifest.write_text(folder / 'logs' / str(Alone.index), built_by)
    return {'devices': hosts.Hosts.here().count}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Broken(Stage):
  """Fails on process 0, which alone builds it."""

  def build(self, root, folder):
    raise manifest.StageError('the disk is full')


def main(port: str, index: str, root: str) -> None:
  here = hosts.join(f'localhost:{port}', 2, int(index))
  Alone.index = here.index
  folder, said = Path(root), []
  experiment = Experiment((Alone(name='alone'), Together(name='together'), IMPORTED))
  run_experiment(experiment, folder, log=said.append, hosts=here)
  run_experiment(experiment, folder, log=said.append, hosts=here)
  value = here.on_main(lambda: {'from': here.index, 'text': 'x' * 3000})
  # a checkpoint that all wrote opens for one of them
  imported = here.on_main(lambda: params_sha256(load_params(folder / 'backbone')[1]))
  failures = []
  for failing in (lambda: 1 / 0, lambda: {1, 2}):
    try:
      here.on_main(failing)
    except (manifest.StageError, ZeroDivisionError, TypeError) as error:
      failures.append(f'{type(error).__name__}: {error}')
  try:
    run_experiment(Experiment((Broken(name='broken'),)), folder, log=said.append, hosts=here)
  except manifest.StageError as error:
    failures.append(str(error))
  found = {'value': value, 'said': said, 'imported': imported, 'failures': failures}
  print(json.dumps(found))


if __name__ == '__main__':
  main(*sys.argv[1:])

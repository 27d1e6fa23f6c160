"""Steps that wait in processes of their own and are timed in turns, so that load meets all alike.

A worker is a program that prepares a step, says so by a line of JSON, and then, for each line that
it reads, runs the step once and prints what it took (`serve`). This file needs the standard library
alone, since peers run it in their own environments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import json
import os
from pathlib import Path
import re
import statistics
import subprocess
import sys
import time
import venv

# of every worker, the setting of `make demo`: without it Linux clears the memory of each step anew
_MAKEFILE = Path(__file__).parents[2] / 'Makefile'
KEEP_MEMORY = re.search(r'GLIBC_TUNABLES \?= (\S+)', _MAKEFILE.read_text()).group(1)
CACHE = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'instructretro_benchmarks'


def serve(step: Callable[[], float], about: dict, warm_up: int = 2) -> None:
  """The worker's side: `step` returns a loss, after all its work is done."""
  losses = [step() for _ in range(warm_up)]
  print(json.dumps(about | {'first_loss': losses[0]}), flush=True)
  for _ in sys.stdin:
    wall, cpu = time.perf_counter(), time.process_time()
    loss = step()
    taken = {'wall': time.perf_counter() - wall, 'cpu': time.process_time() - cpu, 'loss': loss}
    print(json.dumps(taken), flush=True)


class Worker:
  """The other side: starts a worker and waits until it is ready."""

  def __init__(self, command: Sequence[str], threads: int):
    environment = os.environ | {
      'GLIBC_TUNABLES': os.environ.get('GLIBC_TUNABLES', KEEP_MEMORY),
      'OMP_NUM_THREADS': str(threads),
      'OMP_WAIT_POLICY': 'PASSIVE',  # threads that spin slow everything else down
      'PYTHONDONTWRITEBYTECODE': '1',
    }
    self._process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    self.about = self._read()
    self.runs: list[dict] = []

  def step(self) -> None:
    """Runs the step once and notes what it took."""
    self._process.stdin.write('step\n')
    self._process.stdin.flush()
    self.runs.append(self._read())

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()

  def _read(self) -> dict:
    line = self._process.stdout.readline()
    while line and not line.startswith('{'):
      line = self._process.stdout.readline()  # libraries greet
    if not line:
      raise RuntimeError(f'{self._process.args} ended with {self._process.wait()}: see above')
    return json.loads(line)

  def seconds(self, kind: str) -> dict[str, float]:
    """Median, lowest and highest 'wall' or 'cpu' seconds of a step."""
    return spread([run[kind] for run in self.runs])


def spread(values: Sequence[float]) -> dict[str, float]:
  return {'median': statistics.median(values), 'low': min(values), 'high': max(values)}


def peer_python(name: str, requirements: Sequence[str]) -> str:
  """The interpreter of a peer's environment, which is made on first use."""
  folder = CACHE / name
  python, done = folder / 'bin' / 'python', folder / 'installed'
  if not done.exists():
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(python), '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
    subprocess.run([*pip, *requirements], check=True)
    done.touch()
  return str(python)

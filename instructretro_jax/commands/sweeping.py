"""The jobs of a sweep on this machine: what they share once, then so many at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent import futures
import dataclasses
from pathlib import Path
import signal
import sys

from instructretro_jax.pipeline import gin_adapter, root_lock, sharing
from instructretro_jax.pipeline.experiment import Experiment, outcome
from instructretro_jax.pipeline.hosts import PREEMPTED_STATUS
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.pipeline.processes import Processes, last_line
from instructretro_jax.pipeline.status import State
from instructretro_jax.pipeline.sweep import Job, Sweep

SHARED = 'shared'  # folder beside those of the jobs, whose names have a hyphen
STDERR = 'stderr.log'  # in the root of a job: what it said there when it ran last

WAITING, RUNNING, DONE, FAILED, STOPPED = 'waiting', 'running', 'done', 'failed', 'stopped'
Tell = Callable[[str, str, str], None]  # is told the name of a job, its state, and more in words


@dataclasses.dataclass(frozen=True)
class Prepared:
  """A sweep below a root: its jobs, what each configures, and the stages they share."""

  root: Path
  jobs: tuple[Job, ...]
  experiments: tuple[Experiment, ...]
  shared: tuple[str, ...]

  @property
  def first(self) -> Job:
    """Makes what is shared, in a root of its own, as the first job would."""
    return dataclasses.replace(self.jobs[0], name=SHARED, root=self.root / SHARED)

  @property
  def only(self) -> str:
    """The option of `run` that picks what is shared."""
    return f'--only={",".join(self.shared)}'


def prepare(gin_files: Sequence[str], bindings: Sequence[str], root: Path) -> Prepared:
  """Configures a sweep and the experiment of each job; nothing is written.

  Args:
    bindings: those of Sweep itself, and others, which all jobs are given.

  Raises StageError if one of them cannot be configured, or two jobs are the same experiment.
  """
  own = [binding for binding in bindings if binding.startswith(('sweep.Sweep.', 'Sweep.'))]
  of_jobs = [binding for binding in bindings if binding not in own]
  sweep, _ = gin_adapter.configure(Sweep, gin_files, own)
  try:
    sweep = dataclasses.replace(sweep, bindings=(*sweep.bindings, *of_jobs))
    jobs = sweep.jobs(root)
  except ValueError as error:
    raise StageError(f'the sweep of {list(gin_files)}: {error}') from error
  configure = lambda job: gin_adapter.configure(Experiment, job.gin_files, job.bindings)[0]
  experiments = tuple(map(configure, jobs))
  sharing.refuse_equal([job.name for job in jobs], experiments)
  return Prepared(root, jobs, experiments, sharing.shared_stages(experiments))


def run(prepared: Prepared, num_processes: int, tell: Tell) -> int:
  """Brings every job up to date while it holds the lock of the sweep's root.

  A job that fails leaves the others alone. One whose machine is taken away stops them.

  Returns: the exit status: 0, 1 if a job failed, that of a job whose machine is taken away, or 128
  and the signal that stopped the sweep.
  """
  processes = Processes()
  with root_lock.held(prepared.root), processes.passing_signals_on():
    waiting = []
    for job, experiment in zip(prepared.jobs, prepared.experiments):
      if _is_done(experiment, job.root):
        tell(job.name, DONE, 'up to date')
      else:
        waiting.append(job)
    statuses = []
    first, names = prepared.first, prepared.shared
    if waiting and names and not _is_done(prepared.experiments[0], first.root, names):
      statuses.append(_run(first, processes, tell, prepared.only))
    if not any(statuses):
      with futures.ThreadPoolExecutor(num_processes) as pool:
        one = lambda job: _run_linked(job, prepared, processes, tell)
        statuses += pool.map(one, waiting)
  if PREEMPTED_STATUS in statuses:
    return PREEMPTED_STATUS
  if processes.stopped_by is not None:
    return 128 + processes.stopped_by
  return int(any(statuses))


def _is_done(experiment: Experiment, root: Path, only: Sequence[str] = ()) -> bool:
  return all(one.state is State.DONE for one in outcome(experiment, root, only=only))


def _run_linked(job: Job, prepared: Prepared, processes: Processes, tell: Tell) -> int | None:
  sharing.link(prepared.shared, prepared.root / SHARED, job.root)
  return _run(job, processes, tell)


def _run(job: Job, processes: Processes, tell: Tell, *options: str) -> int | None:
  """Runs one job and tells of it; its exit status, None if the sweep was stopped before."""
  stages: list[str] = []

  def follow(line: str) -> None:
    stage, _, words = line.partition(': ')
    is_stage = words and ' ' not in stage  # else the line is about the whole run
    if is_stage and words != 'up to date' and stages[-1:] != [stage]:
      stages.append(stage)
      tell(job.name, RUNNING, stage)

  command = [sys.executable, '-m', 'instructretro_jax', *job.command(*options)[1:]]
  status = processes.run(command, job.root / STDERR, follow)
  if status == PREEMPTED_STATUS:
    processes.stop(signal.SIGTERM)
  if status is None:
    return None
  if status == 0:
    tell(job.name, DONE, '')
  elif processes.stopped_by is not None:
    tell(job.name, STOPPED, last_line(job.root / STDERR))
  else:
    killed = f'signal {-status}: ' if status < 0 else ''
    tell(job.name, FAILED, f'{killed}{last_line(job.root / STDERR)}')
  return status

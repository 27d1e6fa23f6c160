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
  """The jobs of a sweep below a root, and what each configures.

  Attributes:
    shared: makes the stages that come out the same in all jobs, in a root of its own, as the first
      of them would; None if there are no such stages. The others link what it has made, so that it
      must be done before they start.
  """

  root: Path
  shared: Job | None
  jobs: tuple[Job, ...]
  experiments: tuple[Experiment, ...]


def prepare(gin_files: Sequence[str], bindings: Sequence[str], root: Path) -> Prepared:
  """Configures a sweep and the experiment of each job; nothing is written.

  These jobs are all there is to a sweep, whatever starts them: `run` here, or a launcher of jobs
  elsewhere.

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
  names = sharing.shared_stages(experiments)
  links = tuple(root / SHARED / name for name in names)
  first = dataclasses.replace(jobs[0], name=SHARED, root=root / SHARED, only=names)
  jobs = tuple(dataclasses.replace(job, links=links) for job in jobs)
  return Prepared(root, first if names else None, jobs, experiments)


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
    shared = prepared.shared
    if waiting and shared and not _is_done(prepared.experiments[0], shared.root, shared.only):
      statuses.append(_run(shared, processes, tell))
    if not any(statuses):
      with futures.ThreadPoolExecutor(num_processes) as pool:
        statuses += pool.map(lambda job: _run(job, processes, tell), waiting)
  if PREEMPTED_STATUS in statuses:
    return PREEMPTED_STATUS
  if processes.stopped_by is not None:
    return 128 + processes.stopped_by
  return int(any(statuses))


def _is_done(experiment: Experiment, root: Path, only: Sequence[str] = ()) -> bool:
  return all(one.state is State.DONE for one in outcome(experiment, root, only=only))


def _run(job: Job, processes: Processes, tell: Tell) -> int | None:
  """Runs one job and tells of it; its exit status, None if the sweep was stopped before."""
  stages: list[str] = []

  def follow(line: str) -> None:
    stage, _, words = line.partition(': ')
    is_stage = words and ' ' not in stage  # else the line is about the whole run
    if is_stage and words != 'up to date' and stages[-1:] != [stage]:
      stages.append(stage)
      tell(job.name, RUNNING, stage)

  command = [sys.executable, '-m', 'instructretro_jax', *job.command()[1:]]
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

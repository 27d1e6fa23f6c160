"""An experiment: stages in order, run where they are not up to date."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
from pathlib import Path
import time

from instructretro_jax.pipeline import manifest, stage
from instructretro_jax.pipeline.hosts import ONE, Hosts
from instructretro_jax.pipeline.stage import Stage


@dataclasses.dataclass(frozen=True)
class Experiment:
  """What a gin file describes: the stages of a run, each after those it reads."""

  stages: tuple[Stage, ...]

  def __post_init__(self):
    names: set[str] = set()
    for member in self.stages:
      if member.name in names:
        raise ValueError(f'two stages are named {member.name!r}')
      if missing := [name for name in member.reads() if name not in names]:
        raise ValueError(f'stage {member.name!r} reads {missing}, which no earlier stage writes')
      names.add(member.name)

  def select(
    self, only: Sequence[str] = (), start: str | None = None, stop: str | None = None
  ) -> tuple[Stage, ...]:
    """The stages named by `only`, of those from `start` to `stop`, both included; all by default.

    Raises StageError for a name that no stage has, or if nothing is selected.
    """
    names = [member.name for member in self.stages]
    for name in (*only, *filter(None, (start, stop))):
      if name not in names:
        raise manifest.StageError(f'no stage is named {name!r}; the stages are {names}')
    first = names.index(start) if start else 0
    last = names.index(stop) if stop else len(names) - 1
    selected = tuple(m for m in self.stages[first : last + 1] if not only or m.name in only)
    if self.stages and not selected:
      raise manifest.StageError(
        f'no stage is selected from {start} to {stop} by {list(only)}; in order they are {names}'
      )
    return selected


def run(
  experiment: Experiment,
  root: Path,
  *,
  only: Sequence[str] = (),
  start: str | None = None,
  stop: str | None = None,
  rebuild: Sequence[str] = (),
  log: Callable[[str], None] = print,
  hosts: Hosts = ONE,
) -> None:
  """Brings the chosen stages up to date.

  Args:
    rebuild: stages to delete first, with all that read them.
    log: prints progress, on process 0.
    hosts: the processes of the run; each calls this with the same arguments.
  """
  chosen = experiment.select(only, start, stop)
  experiment.select(only=rebuild)  # names are checked before anything is deleted
  hosts.on_main(lambda: _discard(experiment, root, rebuild))
  for member in chosen:
    began = time.monotonic()
    if hosts.on_main(lambda: stage.is_up_to_date(member, root)):
      report = f'{member.name}: up to date'
    else:
      if hosts.is_main:
        log(f'{member.name}: {member.summary()}')
      stage.run(member, root, hosts)
      report = f'{member.name}: done in {time.monotonic() - began:.0f} s'
    if hosts.is_main:
      log(report)


def _discard(experiment: Experiment, root: Path, rebuild: Sequence[str]) -> None:
  """Deletes the named stages, with all that read them."""
  doomed = set(rebuild)
  for member in experiment.stages:
    if member.name in doomed or doomed & set(member.reads()):
      doomed.add(member.name)
      stage.discard(member, root)

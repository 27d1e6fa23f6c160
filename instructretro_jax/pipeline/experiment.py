"""An experiment: stages in order, run where they are not up to date."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
from pathlib import Path
import time

from instructretro_jax.pipeline import manifest, root_lock, stage
from instructretro_jax.pipeline.hosts import ONE, Hosts
from instructretro_jax.pipeline.stage import Stage
from instructretro_jax.pipeline.status import State, Status, statuses

OPERATIVE = 'operative_config.gin'


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

  def with_readers(self, names: Sequence[str]) -> frozenset[str]:
    """The names, and those of all stages that read one of them, or one that does."""
    self.select(only=names)
    found = set(names)
    for member in self.stages:
      if found & set(member.reads()):
        found.add(member.name)
    return frozenset(found)


def outcome(
  experiment: Experiment,
  root: Path,
  *,
  only: Sequence[str] = (),
  start: str | None = None,
  stop: str | None = None,
  rebuild: Sequence[str] = (),
) -> list[Status]:
  """What `run` with these arguments would do with each of the chosen stages."""
  names = [member.name for member in experiment.select(only, start, stop)]
  found = statuses(experiment.stages, root, experiment.with_readers(rebuild))
  return [one for one in found if one.member.name in names]


def run(
  experiment: Experiment,
  root: Path,
  *,
  only: Sequence[str] = (),
  start: str | None = None,
  stop: str | None = None,
  rebuild: Sequence[str] = (),
  operative: str | None = None,
  log: Callable[[str], None] = print,
  hosts: Hosts = ONE,
) -> None:
  """Brings the chosen stages up to date, while it holds the lock of the root.

  Nothing is written if one of them, or what one reads, was made with another configuration, nor if
  all are up to date.

  Args:
    rebuild: stages to delete first, with all that read them.
    operative: the configuration, to be kept in the root if all that is there was made with it.
    log: prints progress, on process 0.
    hosts: the processes of the run; each calls this with the same arguments.
  """
  chosen = experiment.select(only, start, stop)
  doomed = experiment.with_readers(rebuild)
  is_idle = hosts.on_main(lambda: _check(experiment, root, chosen, doomed))
  with contextlib.ExitStack() as stack:
    if not is_idle:
      hosts.on_main(lambda: stack.enter_context(root_lock.held(root)))
      hosts.on_main(lambda: _discard(experiment, root, doomed))
      hosts.on_main(lambda: _keep(operative, experiment, root))
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
    others = [] if is_idle else hosts.on_main(lambda: _keep(operative, experiment, root))
    if others and hosts.is_main:
      log(f'{OPERATIVE} stays as it is; made with another configuration: {", ".join(others)}')


def _check(
  experiment: Experiment, root: Path, chosen: Sequence[Stage], doomed: frozenset[str]
) -> bool:
  """Whether nothing is to be done. Raises StageError if something chosen is refused."""
  found = {one.member.name: one for one in statuses(experiment.stages, root, doomed)}
  names = {member.name for member in chosen}
  needed = set(names)
  for member in reversed(experiment.stages):
    if member.name in needed:
      needed.update(member.reads())
  for name, one in found.items():
    if name in needed | doomed and one.error is not None:
      raise one.error
  for member in chosen:
    for name in member.reads():
      if name not in names and (name in doomed or not manifest.is_finished(root / name)):
        raise manifest.StageError(
          f'{member.name} reads {root / name}, which holds no finished stage: run it first, or '
          'leave out --only and --from'
        )
  return not doomed and all(found[name].state is State.DONE for name in names)


def _discard(experiment: Experiment, root: Path, doomed: frozenset[str]) -> None:
  for member in experiment.stages:
    if member.name in doomed:
      stage.discard(member, root)


def _keep(operative: str | None, experiment: Experiment, root: Path) -> list[str]:
  """Writes the configuration, unless stages, which are named, are or may be of another."""
  found = statuses(experiment.stages, root, frozenset())
  others = [one.member.name for one in found if one.error or one.state is State.DEPENDS]
  if operative is not None and not others:
    manifest.write_text(root / OPERATIVE, operative)
  return others if operative is not None else []

"""What a run would do with each stage of an experiment, told without doing it."""

from __future__ import annotations

from collections.abc import Sequence
import enum
from pathlib import Path
from typing import NamedTuple

from instructretro_jax.pipeline import manifest, stage
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.pipeline.stage import Stage


class State(enum.Enum):
  """Of a stage before a run."""

  DONE = 'up to date'
  RUNS = 'would run'
  EXTENDS = 'would go on from what is finished'
  DEPENDS = 'up to date if what it reads comes out the same'
  REFUSED = 'refused'


class Status(NamedTuple):
  """The state of a stage, in words too, and why it is refused."""

  member: Stage
  state: State
  words: str
  error: StageError | None = None


def statuses(stages: Sequence[Stage], root: Path, discarded: frozenset[str]) -> list[Status]:
  """The status of each stage, in their order, where those of the names `discarded` are made anew.

  A stage behind one that is refused is refused for that; one behind a stage that runs runs too, or
  turns out to be up to date if the other gives the bytes that it gave before.
  """
  found: dict[str, Status] = {}
  for member in stages:
    found[member.name] = _status(member, root, found, discarded)
  return list(found.values())


def _status(
  member: Stage, root: Path, before: dict[str, Status], discarded: frozenset[str]
) -> Status:
  upstream = [before[name] for name in member.reads()]
  if refused := next((one for one in upstream if one.state is State.REFUSED), None):
    is_first = refused.error is not None
    words = f'not reached: {refused.member.name} is refused' if is_first else refused.words
    return Status(member, State.REFUSED, words)
  if member.name in discarded:
    try:
      stage.refuse_linked(member, root)
    except StageError as error:
      return Status(member, State.REFUSED, str(error), error)
    return Status(member, State.RUNS, 'would run anew')
  if longer := [one.member.name for one in upstream if one.state is State.EXTENDS]:
    if manifest.has_begun(root / member.name):
      words = f'{root / member.name} was made of {longer[0]}, which would go on'
      error = StageError(f'{words}: rebuild it, and what follows, with --rebuild={member.name}')
      return Status(member, State.REFUSED, words, error)
    return Status(member, State.RUNS, State.RUNS.value)
  moving = [one.member.name for one in upstream if one.state in (State.RUNS, State.DEPENDS)]
  try:
    if not moving:
      done = stage.is_up_to_date(member, root)
    else:
      done = stage.is_up_to_date_but_for_inputs(member, root)
    if not done:
      stage.refuse_linked(member, root)
  except StageError as error:
    return Status(member, State.REFUSED, str(error).splitlines()[0], error)
  if not done and manifest.is_finished(root / member.name):
    return Status(member, State.EXTENDS, State.EXTENDS.value)
  if not done:
    return Status(member, State.RUNS, State.RUNS.value)
  if moving:
    words = f'up to date if {", ".join(moving)} gives what it gave before'
    return Status(member, State.DEPENDS, words)
  return Status(member, State.DONE, State.DONE.value)

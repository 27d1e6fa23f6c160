"""A sweep: an experiment and a grid of values for some of its gin bindings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import itertools
from pathlib import Path
import re
from typing import Any

Axis = tuple[str, tuple[Any, ...]]  # a name that gin binds, and its values

_NAME = re.compile(r'[A-Za-z_][A-Za-z0-9_./]*')
_LABEL_CHARS = 24  # of a value, in the name of a job
_NAME_BYTES = 200  # file systems end at 255


@dataclasses.dataclass(frozen=True)
class Job:
  """One run of a sweep: plain data for whatever starts it, here or on machines elsewhere."""

  name: str
  root: Path
  gin_files: tuple[str, ...]
  bindings: tuple[str, ...]  # 'NAME = VALUE'
  only: tuple[str, ...] = ()  # stages that it makes; all if there are none
  links: tuple[Path, ...] = ()  # folders of finished stages that it reads in place of making them

  def command(self) -> tuple[str, ...]:
    """The command line that runs it, argument by argument."""
    files = [f'--gin_file={file}' for file in self.gin_files]
    split = [binding.partition(' = ') for binding in self.bindings]
    values = [f'--gin.{name}={value}' for name, _, value in split]
    only = [f'--only={",".join(self.only)}'] if self.only else []
    links = [f'--link={folder}' for folder in self.links]
    return ('instructretro', 'run', *files, f'--root={self.root}', *values, *only, *links)


@dataclasses.dataclass(frozen=True)
class Sweep:
  """A job for every combination of the values of the axes, the last axis fastest."""

  gin_files: tuple[str, ...]  # of the experiment, as `instructretro run` is given them
  axes: tuple[Axis, ...]
  bindings: tuple[str, ...] = ()  # of all jobs: 'NAME = VALUE'

  def __post_init__(self):
    if not self.gin_files or not self.axes:
      raise ValueError('give a sweep the gin_files of an experiment, and at least one of axes')
    is_list = lambda value, types=(tuple, list): isinstance(value, types)
    if wrong := [a for a in self.axes if not (is_list(a) and len(a) == 2 and is_list(a[1]))]:
      raise ValueError(f"{wrong[0]!r} in axes is no pair such as ('SEED', (0, 1))")
    names = [name for name, _ in self.axes]
    for binding in self.bindings:
      if ' = ' not in binding:
        raise ValueError(f'{binding!r} in bindings is not of the form NAME = VALUE')
      names.append(binding.partition(' = ')[0])
    for name in names:
      if not _NAME.fullmatch(name):
        raise ValueError(f'{name!r} is no name that gin binds')
    for name, values in self.axes:
      if names.count(name) > 1:
        raise ValueError(f'{name} is an axis, and given a value elsewhere in the sweep')
      written = [repr(value) for value in values]
      if not written or len(set(written)) < len(written):
        raise ValueError(f'the values of axis {name} are {written}: give one or more, each once')
      if wrong := [value for value in values if not _is_literal(value)]:
        raise ValueError(f'axis {name} has {wrong[0]!r}, which is no number, text, tuple or dict')

  def jobs(self, root: Path) -> tuple[Job, ...]:
    """All jobs, in an order that the axes decide, each with a root of its own below `root`.

    Raises ValueError if their names, made of the axes, are too long for folders.
    """
    return tuple(self._jobs(root))

  def _jobs(self, root: Path) -> Iterator[Job]:
    heads = _axis_labels([name for name, _ in self.axes])
    labels = [_value_labels(values) for _, values in self.axes]
    for choice in itertools.product(*(range(len(values)) for _, values in self.axes)):
      name = '_'.join(f'{head}-{of[n]}' for head, of, n in zip(heads, labels, choice))
      if len(name) > _NAME_BYTES:
        raise ValueError(f'{name} is too long a name for the folder of a job: take fewer axes')
      chosen = [f'{axis} = {values[n]!r}' for (axis, values), n in zip(self.axes, choice)]
      yield Job(name, root / name, tuple(self.gin_files), (*self.bindings, *chosen))


def _is_literal(value: Any) -> bool:
  if isinstance(value, (tuple, list)):
    return all(map(_is_literal, value))
  if isinstance(value, dict):
    return all(map(_is_literal, (*value.keys(), *value.values())))
  return value is None or isinstance(value, (bool, int, float, str))


def _axis_labels(names: Sequence[str]) -> list[str]:
  """The last part of each name; all of it where two axes share that."""
  last = [re.split(r'[./]', name.rstrip('./'))[-1] for name in names]
  return [
    short if last.count(short) == 1 else re.sub(r'[./]', '-', name)
    for name, short in zip(names, last)
  ]


def _value_labels(values: Sequence[Any]) -> list[str]:
  """Each value in letters that are safe in a folder's name, without _, which parts the axes.

  Those that come out alike, on a file system that takes A for a too, are numbered.
  """
  texts = [value if isinstance(value, str) else repr(value) for value in values]
  labels = [re.sub(r'[^A-Za-z0-9.+-]+', '-', text)[:_LABEL_CHARS] for text in texts]
  alike = len({label.casefold() for label in labels}) < len(labels)
  return [f'{n}-{label}' for n, label in enumerate(labels)] if alike else labels

"""The order of the rooms of the package, and what importing them costs."""

import ast
from pathlib import Path
import subprocess
import sys

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / 'instructretro_jax'

# a room imports itself and those of lines above its own; report reads stage folders only
ORDER = (
  ('array_types', 'pipeline'),
  ('text', 'model'),
  ('retrieval',),
  ('questions',),
  ('examples',),
  ('train',),
  ('inference', 'interop', 'report'),
  ('evaluate', 'precompile'),
  ('web',),
  ('commands',),
  ('main',),
  ('__main__',),
)
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}
MAY_READ = {
  'report': {'pipeline'},  # and no code that writes what it reads
  'model': {'array_types'},  # neither data nor retrieval
  'text': {'pipeline'},
}


def room_of(path):
  return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imported(path):
  """Rooms of the package that a module imports, anywhere in it."""
  for node in ast.walk(ast.parse(path.read_text())):
    names = []
    if isinstance(node, ast.ImportFrom) and node.module:
      names = [node.module + '.' + alias.name for alias in node.names]
    elif isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    for name in names:
      first, *rest = name.split('.')
      if first == PACKAGE.name and rest and rest[0] != '__version__':
        yield rest[0]


@pytest.mark.parametrize('path', sorted(PACKAGE.rglob('*.py')), ids=lambda p: p.stem)
def test_imports_point_down(path):
  room = room_of(path)
  if room == '__init__':
    return
  found = set(imported(path)) - {room}
  upward = sorted(other for other in found if FLOOR[other] >= FLOOR[room])
  assert not upward, f'{path.relative_to(PACKAGE)} of {room} imports {upward}, which stand above it'
  if room in MAY_READ:
    assert found <= MAY_READ[room], f'{room} imports {sorted(found - MAY_READ[room])}'


def test_no_module_is_long():
  long = {p.name: n for p in PACKAGE.rglob('*.py') if (n := len(p.read_text().splitlines())) >= 300}
  assert not long


def modules_after(code):
  code += '; import sys; print(*sys.modules)'
  return subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  ).stdout.split()


def test_training_needs_neither_tensorflow_nor_seqio():
  found = modules_after('import instructretro_jax.train.loop')
  assert 'jax' in found
  assert not {'tensorflow', 'seqio', 'clu', 'scann', 'apache_beam', 'matplotlib'} & set(found)


def test_the_command_line_loads_nothing_heavy():
  found = modules_after('import instructretro_jax.main, instructretro_jax.pipeline.experiment')
  assert not {'tensorflow', 'jax', 'seqio'} & set(found)


@pytest.mark.parametrize(
  'text, room',
  [("'encoder|cross_attention'", None), ('os.replace(', 'pipeline'), ("'.partial'", 'pipeline')],
)
def test_an_idea_has_one_home(text, room):
  found = {room_of(p) for p in PACKAGE.rglob('*.py') if text in p.read_text()}
  assert found == ({room} if room else set())

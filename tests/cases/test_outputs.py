"""Every command that writes, onto every kind of place: it writes, or says in one line why not."""

from collections.abc import Callable
import contextlib
import functools
import io
import json
from pathlib import Path
import re
import subprocess
from typing import NamedTuple

import click
import jax
import numpy as np
import pytest

from instructretro_jax import main
from instructretro_jax.commands.paths import UserPath
from instructretro_jax.interop.stages import import_alone
from instructretro_jax.pipeline import atomic, manifest
from instructretro_jax.precompile import estimate, steps, topology
from tests.interop.test_huggingface import GOLDEN
from tests.report import synthetic
from tests.report.test_compare import write_run

RUN = """
from __gin__ import dynamic_registration
from instructretro_jax.pipeline import experiment
from instructretro_jax.text import chunks
from instructretro_jax.text import corpus
from instructretro_jax.text import sources
from instructretro_jax.text import vocabulary
sources.TextFiles.pattern = %FILES
corpus.Corpus.sources = (@sources.TextFiles(),)
corpus.Corpus.heldout_fraction = 0.3
corpus.Corpus.num_shards = 1
vocabulary.TrainVocabulary.vocab_size = 400
chunks.Chunks.chunk_len = 16
experiment.Experiment.stages = (@corpus.Corpus(), @vocabulary.TrainVocabulary(), @chunks.Chunks())
FILES = %gin.REQUIRED
"""
PRECOMPILE = ['precompile', '--gin_file=tests/tiny.gin', '--topology=h100:1x8', '--step=instruct',
              '--batch_size=8']  # fmt: skip


class Case(NamedTuple):
  """A command that writes what an option names."""

  command: str
  option: str
  arguments: Callable[[Path], list[str]]  # of the folder of what is read
  is_folder: bool = False


CASES = {
  'run': Case(
    'run',
    '--root',
    lambda given: [f'--gin_file={given}/run.gin', f"--gin.FILES='{given}/texts/*'"],
    is_folder=True,
  ),
  'import': Case('import', '--out', lambda _: [f'--source={GOLDEN}/llama'], is_folder=True),
  'export': Case('export', '--out', lambda given: [f'--checkpoint={given}/llama'], is_folder=True),
  'export megatron': Case(
    'export',
    '--out',
    lambda given: [f'--checkpoint={given}/llama', '--format=megatron'],
    is_folder=True,
  ),
  'generate': Case(
    'generate',
    '--out',
    lambda given: [
      f'--checkpoint={given}/arm', f'--prompts={given}/prompts.jsonl', '--max_new=2'
    ],
  ),
  'compare': Case('compare', '--json', lambda given: [f'{given}/runs/0', f'{given}/runs/1']),
  'precompile': Case('precompile', '--json', lambda _: PRECOMPILE[1:]),
  'precompile program': Case('precompile', '--hlo', lambda _: PRECOMPILE[1:]),
}  # fmt: skip
FILES = [name for name, case in CASES.items() if not case.is_folder]
# whose jobs are runs, so that what they write is theirs
SWEEP = Case('sweep', '--root', lambda given: [f'--gin_file={given}/sweep.gin'], is_folder=True)
REFUSED = {**CASES, 'sweep': SWEEP}


def path_options():
  """(command, parameter) of every path that a command takes."""
  for name, command in main.main.commands.items():
    for parameter in command.params:
      if isinstance(parameter.type, click.Path):
        yield name, parameter


def test_every_path_that_need_not_exist_has_a_case():
  written = {(name, p.opts[0]) for name, p in path_options() if not p.type.exists}
  assert written == {(case.command, case.option) for case in REFUSED.values()}


# texts of these options may be paths
PATHS_AS_TEXT = {
  ('run', '--gin_file'), ('precompile', '--gin_file'), ('import', '--source'),
  ('import', '--tokenizer'),
}  # fmt: skip


def test_every_path_option_expands_a_tilde(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'x').mkdir()
  (tmp_path / 'x.file').touch()
  for name, parameter in path_options():
    assert isinstance(parameter.type, UserPath), (name, parameter.opts)
    given = '~/x' if parameter.type.dir_okay else '~/x.file'
    assert parameter.type.convert(given, parameter, None) == tmp_path / given[2:]
  (tmp_path / 'x.json').write_text('{}')
  monkeypatch.chdir(tmp_path)
  for name, option in PATHS_AS_TEXT:
    given = {'--source': str(GOLDEN / 'llama'), '--out': 'out', '--topology': 'h100:1x8'}
    given = {p.opts[0]: given.get(p.opts[0]) for p in main.main.commands[name].params if p.required}
    code, said = console([name, *(f'{k}={v}' for k, v in (given | {option: '~/x.json'}).items())])
    assert code == 1 and not re.search('does not exist|no .*file', said), said


@pytest.fixture(scope='module')
def given(tmp_path_factory, built_run_with_arm):
  """What the commands read."""
  folder = tmp_path_factory.mktemp('given')
  (folder / 'run.gin').write_text(RUN)
  (folder / 'sweep.gin').write_text(
    'from __gin__ import dynamic_registration\nfrom instructretro_jax.pipeline import sweep\n'
    f"sweep.Sweep.gin_files = ('{folder}/run.gin',)\n"
    f"sweep.Sweep.axes = (('FILES', ('{folder}/texts/*', '{folder}/texts/1*')),)\n"
  )
  (folder / 'texts').mkdir()
  for n in range(12):
    (folder / 'texts' / f'{n}.txt').write_text(
      f'The tower number {n} is {n * 7} metres high.\n' * 9
    )
  rows = [{'prompt': 'ape bee ', 'id': n} for n in range(90)]
  (folder / 'prompts.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  (folder / 'arm').symlink_to(built_run_with_arm / 'imported')
  import_alone(str(GOLDEN / 'llama'), folder / 'llama')
  for n in range(2):
    write_run(folder / 'runs' / str(n), synthetic.perplexity_rows(20.0 + n))
  return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
  """What is compiled is small, and nothing is kept outside."""
  monkeypatch.setenv('INSTRUCTRETRO_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(topology, 'devices', lambda target: jax.devices())
  lower = lambda step, mesh: jax.jit(lambda x: x @ x).lower(np.ones((8, 8), np.float32))
  monkeypatch.setattr(steps.Step, 'lower', lower)
  monkeypatch.setattr(steps, 'make_step', functools.partial(made_once, steps.make_step))


_MADE = []


def made_once(make, *arguments):
  if not _MADE:
    _MADE.append(make(*arguments))
  return _MADE[0]


def console(arguments):
  """Exit code and stderr of the entry point."""
  out, said = io.StringIO(), io.StringIO()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('sys.argv', ['instructretro', *arguments])
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
      try:
        main.console()
        code = 0
      except SystemExit as done:
        code = done.code or 0
  return code, said.getvalue()


def invoke(case, given, target):
  return console([case.command, *case.arguments(given), f'{case.option}={target}'])


def refused(case, given, target):
  """The one line by which a command ends that cannot write."""
  code, said = invoke(case, given, target)
  assert code in (1, 2), said
  _, begin, message = said.rpartition('error: ' if code == 1 else 'Error: ')
  assert begin and message.count('\n') == 1, said
  return message


def tree(path):
  """What stands at a path: the bytes of each file."""
  if path.is_file():
    return path.read_bytes()
  return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob('*') if p.is_file()}


@pytest.fixture(scope='module')
def whole(given, tmp_path_factory):
  """What a command writes where there is room."""

  @functools.cache
  def write(name):
    folder = tmp_path_factory.mktemp('whole') / 'new' / 'folder'  # which does not exist
    code, said = invoke(CASES[name], given, folder / 'out')
    assert code == 0, said
    assert [path.name for path in folder.iterdir()] == ['out'] and tree(folder / 'out')
    return folder / 'out'

  return write


@pytest.fixture
def disk(tmp_path):
  """A function (options) that mounts a small disk, or mounts it anew."""
  folder = tmp_path / 'disk'
  folder.mkdir()

  def mount(options):
    again = ['remount,'] if folder.is_mount() else ['']
    command = ['mount', '-t', 'tmpfs', '-o', again[0] + options, 'tmpfs', str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
      pytest.skip('no file system can be mounted here')
    return folder

  yield mount
  if folder.is_mount():
    subprocess.run(['umount', str(folder)], check=True)


@pytest.mark.parametrize('name', CASES)
def test_folders_are_made(name, whole):
  assert whole(name).exists()


@pytest.mark.parametrize('name', REFUSED)
def test_below_a_file_is_one_line(name, given, tmp_path):
  (tmp_path / 'file').write_text('kept')
  message = refused(REFUSED[name], given, tmp_path / 'file' / 'out')
  assert str(tmp_path / 'file') in message
  assert (tmp_path / 'file').read_text() == 'kept'


@pytest.mark.parametrize('name', FILES)
def test_a_folder_where_a_file_is_meant_is_one_line(name, given, tmp_path, monkeypatch):
  (tmp_path / 'out').mkdir()
  monkeypatch.setattr(estimate, 'precompile', None)  # said before any work
  assert str(tmp_path / 'out') in refused(CASES[name], given, tmp_path / 'out')


@pytest.mark.parametrize('name', REFUSED)
def test_a_read_only_disk_is_one_line(name, given, disk, monkeypatch):
  folder = disk('size=1m')
  if name in FILES:
    (folder / 'out').write_text('kept')
  disk('ro')
  monkeypatch.setattr(estimate, 'precompile', None)  # said before any work
  for target in (folder / 'out', folder / 'new' / 'out'):
    message = refused(REFUSED[name], given, target)
    assert str(folder) in message and '.partial' not in message, message
  assert name not in FILES or (folder / 'out').read_text() == 'kept'


SIZES = {'run': ('4k', '16k', '60k'), 'import': ('4k', '60k', '160k'),
         'export': ('4k', '40k'), 'export megatron': ('4k', '40k')}  # fmt: skip


@pytest.mark.parametrize('name, size', [(n, s) for n in CASES for s in SIZES.get(n, ('4k',))])
def test_a_full_disk_is_one_line_and_nothing_is_lost(name, size, given, whole, disk):
  case, folder = CASES[name], disk(f'size={size}')
  target = folder / 'out'
  before = None
  if name == 'generate':
    before = whole(name).read_bytes()[: 1 << 9].rpartition(b'\n')[0] + b'\n'  # some answers
  elif name in FILES:
    before = b'kept'
  if before is not None:
    target.write_bytes(before)
  message = refused(case, given, target)
  assert str(target) in message and 'No space left' in message or 'is full' in message, message
  assert 'make room' in message and '.partial' not in message
  assert not list(folder.rglob('*.partial')) or name == 'run'
  if name == 'generate':
    kept = target.read_bytes()
    assert kept.startswith(before) and whole(name).read_bytes().startswith(kept)
    assert kept.endswith(b'\n')
  elif before is not None:
    assert target.read_bytes() == before
  elif name != 'run':
    assert not list(folder.iterdir())
  disk('size=40m')
  code, said = invoke(case, given, target)
  assert code == 0, said
  if name == 'run':
    for stage in ('corpus', 'vocabulary', 'chunks'):
      found = manifest.read_manifest(target / stage)
      assert found.fingerprint == manifest.read_manifest(whole(name) / stage).fingerprint
  elif case.command == 'export' or name in ('generate', 'compare'):
    assert tree(target) == tree(whole(name))


def test_whatever_a_library_calls_a_full_disk_it_is_named_by_its_path(tmp_path):
  target = tmp_path / 'out'
  for error in (OSError(28, 'No space left on device'), ValueError('x: No space left on device')):
    with pytest.raises(OSError) as caught, atomic.atomic(target):
      raise error
    assert manifest.in_words(caught.value).startswith(f'{target}: No space left on device: make')

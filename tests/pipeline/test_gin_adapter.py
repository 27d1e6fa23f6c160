"""Where gin files are found, in which order, and what is said where one is missing."""

import pytest

from gin import config as gin_config
from instructretro_jax.pipeline import gin_adapter
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.text.chunks import Chunks

HEAD = 'from __gin__ import dynamic_registration\nfrom instructretro_jax.text import chunks\n'


def write(path, *lines):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(HEAD + '\n'.join(lines) + '\n')


def chunk_len_of(*files, bindings=(), placeholder=None):
  return gin_adapter.configure(Chunks, [str(f) for f in files], bindings, placeholder)[0].chunk_len


@pytest.fixture
def folders(tmp_path, monkeypatch):
  """The working folder, that of the file given, and the package's, each with its own part.gin."""
  found = [tmp_path / name for name in ('working', 'given', 'shipped')]
  for chunk_len, folder in enumerate(found, start=1):
    write(folder / 'sub' / 'part.gin', f'chunks.Chunks.chunk_len = {chunk_len}')
  write(found[1] / 'experiment.gin', "include 'sub/part.gin'")
  monkeypatch.chdir(found[0])
  monkeypatch.setattr(gin_adapter, 'SHIPPED', found[2])
  return found


def test_included_files_are_looked_for_in_the_stated_order(folders):
  for chunk_len, folder in enumerate(folders, start=1):
    assert chunk_len_of(folders[1] / 'experiment.gin') == chunk_len
    (folder / 'sub' / 'part.gin').unlink()


def test_files_given_are_looked_for_in_the_same_order(folders):
  write(folders[2] / 'alone.gin', 'chunks.Chunks.chunk_len = 9')
  assert chunk_len_of('alone.gin') == 9
  assert chunk_len_of('sub/part.gin') == 1
  (folders[0] / 'sub' / 'part.gin').unlink()
  assert chunk_len_of('sub/part.gin') == 3
  assert chunk_len_of(folders[1] / 'experiment.gin', 'sub/part.gin') == 2


def test_of_several_files_each_has_its_own_folder_before_those_of_the_earlier(folders, tmp_path):
  write(tmp_path / 'later' / 'more.gin', "include 'sub/part.gin'")
  write(tmp_path / 'later' / 'sub' / 'part.gin', 'chunks.Chunks.chunk_len = 7')
  (folders[0] / 'sub' / 'part.gin').unlink()
  assert chunk_len_of(folders[1] / 'experiment.gin', tmp_path / 'later' / 'more.gin') == 7


def test_a_call_leaves_no_folder_to_the_next(folders):
  before = list(gin_config._LOCATION_PREFIXES)
  write(folders[1] / 'only_here.gin', 'chunks.Chunks.chunk_len = 5')
  assert chunk_len_of(folders[1] / 'experiment.gin', 'only_here.gin') == 5
  assert before == gin_config._LOCATION_PREFIXES
  with pytest.raises(StageError, match='only_here.gin'):
    chunk_len_of('only_here.gin')
  with pytest.raises(OSError, match='only_here.gin'):
    gin_config.parse_config_file('only_here.gin')


def test_a_file_found_nowhere_names_the_places_in_one_line(folders):
  write(folders[1] / 'experiment.gin', "include 'gone.gin'")
  with pytest.raises(StageError) as raised:
    chunk_len_of(folders[1] / 'experiment.gin')
  message = str(raised.value)
  assert '\n' not in message and message.startswith('gone.gin is in none of the folders')
  places = [message.index(str(folder)) for folder in folders]
  assert places == sorted(places)
  assert 'experiment.gin" line 3' in message.replace(',', '')  # who includes it


def test_a_file_that_is_missing_is_named_by_the_hint_of_its_macros(tmp_path):
  write(
    tmp_path / 'phase.gin',
    "SIZE = 'REQUIRED: a size: add --gin_file=small.gin'",
    'LENGTH = %SIZE',
    'SOURCE = %gin.REQUIRED',
    'chunks.Chunks.chunk_len = %LENGTH',
    'chunks.Chunks.name = %SOURCE',
  )
  write(tmp_path / 'small.gin', 'LENGTH = 8')
  files = (tmp_path / 'phase.gin', tmp_path / 'small.gin')
  expected = (
    r"\['LENGTH'\], which come with a size: add --gin_file=small.gin; \['SOURCE'\]; give each"
  )
  with pytest.raises(StageError, match=expected):
    chunk_len_of(files[0])
  with pytest.raises(StageError, match=r"choose: \['LENGTH'\], which come with a size[^;]*$"):
    chunk_len_of(files[0], placeholder='a path')
  assert chunk_len_of(*files, placeholder='a path') == 8
  assert chunk_len_of(files[0], bindings=['LENGTH = 4', "SOURCE = 'x'"]) == 4


@pytest.mark.parametrize('value', ['my/folder/*.txt', 'some text', "'half", '[1, 2', '-'])
def test_text_without_its_quotes_is_no_value(folders, value):
  with pytest.raises(StageError, match='is no value of gin; if SIZE is text, write --gin.SIZE='):
    chunk_len_of(folders[1] / 'experiment.gin', bindings=[f'SIZE = {value}'])


def test_files_that_are_in_no_package_are_no_news(folders, caplog, monkeypatch):
  (folders[0] / 'sub' / 'part.gin').unlink()
  monkeypatch.syspath_prepend(folders[1])  # with a folder of that name, which is no package
  assert chunk_len_of(folders[1] / 'experiment.gin') == 2
  assert not caplog.records

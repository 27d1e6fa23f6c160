"""A folder of files of several forms."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructretro_jax.pipeline import manifest
from instructretro_jax.text.any_files import AnyFiles
from instructretro_jax.text.documents import Problems


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / 'my [texts]'
  (folder / 'in').mkdir(parents=True)
  (folder / 'a.txt').write_text('plain')
  (folder / 'b.MD').write_text('marked down')
  (folder / 'nothing').write_text('no ending')
  (folder / 'in' / 'c.jsonl').write_text('{"text": "one"}\n{"text": "two"}\n')
  (folder / 'in' / 'd.jsonl.gz').write_bytes(gzip.compress(b'{"text": "packed"}\n'))
  (folder / 'in' / 'e.txt.gz').write_bytes(gzip.compress(b'packed text'))
  pq.write_table(pa.table({'text': ['of a table']}), folder / 'f.parquet')
  (folder / 'g.png').write_bytes(b'\x89PNG')
  (folder / '.hidden').write_text('hidden')
  return folder


def read(pattern):
  problems = Problems()
  return {d.id: d.text for d in AnyFiles(pattern).read(problems)}, problems.to_json()['counts']


def test_each_file_of_a_folder_is_read_as_it_is_named(folder):
  found, problems = read(str(folder))
  assert found == {
    'a.txt': 'plain',
    'b.MD': 'marked down',
    'f.parquet:1': 'of a table',
    'in/c.jsonl:1': 'one',
    'in/c.jsonl:2': 'two',
    'in/d.jsonl.gz:1': 'packed',
    'in/e.txt.gz': 'packed text',
    'nothing': 'no ending',
  }
  assert problems == {'broken_utf8': 1}  # the picture


def test_patterns_and_folders_may_be_mixed(folder):
  found, _ = read((f'{folder}/*.txt', f'{folder}/in'))
  assert set(found.values()) == {'plain', 'one', 'two', 'packed', 'packed text'}


def test_a_folder_without_files_is_refused(tmp_path):
  with pytest.raises(manifest.StageError, match='no file matches'):
    read(str(tmp_path))

"""Reading the user's own text, good and bad."""

import gzip
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from instructretro_jax.pipeline import manifest
from instructretro_jax.text.documents import Problems
from instructretro_jax.text.files import matching_files
from instructretro_jax.text.sources import Arrow, JsonLines, Parquet, TextFiles, TfdsText


def read(source, **limits):
  problems = Problems(**limits)
  return list(source.read(problems)), problems.to_json()


def test_json_lines_plain_and_gz(tmp_path):
  (tmp_path / 'a.jsonl').write_text('\ufeff{"text": "one\u2028line"}\n\n{"text": "two"}')
  with gzip.open(tmp_path / 'b.jsonl.gz', 'wt') as file:
    file.write('{"text": "three", "other": 1}\n')
  documents, problems = read(JsonLines(str(tmp_path / '*.jsonl*')))
  assert [d.text for d in documents] == ['one\u2028line', 'two', 'three']
  assert [d.id for d in documents] == ['a.jsonl:1', 'a.jsonl:3', 'b.jsonl.gz:1']
  assert problems['counts'] == {}


def test_keys_are_chosen(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"body": "x", "n": 7}\n{"body": "y"}\n{"body": "z", "n": [1]}\n')
  documents, problems = read(JsonLines(str(path), text_key='body', id_key='n', source='mine'))
  assert [(d.id, d.text, d.source) for d in documents] == [('7', 'x', 'mine')]
  assert problems['counts'] == {'missing_id': 2}


@pytest.mark.parametrize(
  'line, kind',
  [
    (b'{"text": "b\xff"}', 'broken_utf8'),
    (b'{"text": "\\ud800"}', 'broken_utf8'),
    (b'{"text": ', 'not_json'),
    (b'[' * 100_000, 'not_json'),
    (b'["text"]', 'wrong_type'),
    (b'{"text": 3}', 'wrong_type'),
    (b'{"txt": "a"}', 'missing_text'),
    (b'{"text": null}', 'missing_text'),
    (b'{"text": " "}', 'empty'),
    (json.dumps({'text': 'x' * 50_001}).encode(), 'too_long'),
    (json.dumps({'text': 'x' * 500_000}).encode(), 'too_long'),
  ],
)
def test_each_kind_of_bad_line_is_counted_and_passed_over(tmp_path, line, kind):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"text": "good"}\n' + line + b'\n{"text": "also good"}\n')
  documents, problems = read(JsonLines(str(path)), max_document_bytes=50_000)
  assert [d.id for d in documents] == ['a.jsonl:1', 'a.jsonl:3']
  assert problems['counts'] == {kind: 1}
  assert problems['examples'][0].startswith(f'{path}:2: ')
  with pytest.raises(manifest.StageError, match='a.jsonl:2'):
    read(JsonLines(str(path)), policy='refuse', max_document_bytes=50_000)


def test_broken_utf8_names_the_offset_in_the_file(tmp_path):
  (tmp_path / 'a.jsonl').write_bytes(b'{"text": "a"}\n{"text": "\xfe"}\n')
  assert 'offset 24 ' in read(JsonLines(str(tmp_path / 'a.jsonl')))[1]['examples'][0]
  (tmp_path / 'a.txt').write_bytes(b'abc\n\xfe')
  assert 'offset 4 ' in read(TextFiles(str(tmp_path / 'a.txt')))[1]['examples'][0]


def test_a_cut_gz_file_keeps_what_came_before(tmp_path):
  lines = ''.join(json.dumps({'text': f'{n} {n * n}'}) + '\n' for n in range(20_000))
  whole = gzip.compress(lines.encode())
  (tmp_path / 'a.jsonl.gz').write_bytes(whole[: len(whole) // 2])
  (tmp_path / 'b.jsonl.gz').write_bytes(b'not gzip')
  (tmp_path / 'c.jsonl').write_text('{"text": "after"}')
  documents, problems = read(JsonLines(str(tmp_path / '*')))
  assert problems['counts'] == {'broken_file': 2}
  assert 1 < len(documents) < 20_000 and documents[-1].text == 'after'


def test_text_files_at_any_depth(tmp_path):
  (tmp_path / 'in' / 'deep').mkdir(parents=True)
  (tmp_path / 'in' / 'b.txt').write_text('B')
  (tmp_path / 'in' / 'deep' / 'a.txt').write_text('A\nA')
  (tmp_path / 'in' / 'empty.txt').write_text('\n')
  (tmp_path / 'in' / 'long.txt').write_text('123456')
  documents, problems = read(TextFiles(f'{tmp_path}/in/**/*.txt'), max_document_bytes=5)
  assert [(d.id, d.text) for d in documents] == [('b.txt', 'B'), ('deep/a.txt', 'A\nA')]
  assert problems['counts'] == {'empty': 1, 'too_long': 1}


def test_a_text_file_above_the_limit_is_not_read(tmp_path):
  path = tmp_path / 'huge.txt'
  with path.open('wb') as file:
    file.truncate(1 << 38)  # sparse: more than memory holds
  documents, problems = read(TextFiles(str(path)))
  assert not documents and problems['counts'] == {'too_long': 1}


def test_parquet(tmp_path):
  table = pa.table({'body': pa.array([b'one', None, b'\xff', b'four'], pa.binary()), 'n': range(4)})
  pq.write_table(table, tmp_path / 'a.parquet', row_group_size=2)
  pq.write_table(pa.table({'body': ['five']}), tmp_path / 'b.parquet')
  pq.write_table(pa.table({'body': [5]}), tmp_path / 'c.parquet')
  pq.write_table(pa.table({'text': ['x']}), tmp_path / 'd.parquet')
  (tmp_path / 'e.parquet').write_bytes(b'PAR?')
  documents, problems = read(Parquet(str(tmp_path / '*.parquet'), text_column='body'))
  found = [(d.id, d.text) for d in documents]
  assert found == [('a.parquet:1', 'one'), ('a.parquet:4', 'four'), ('b.parquet:1', 'five')]
  counts = {'broken_utf8': 1, 'missing_text': 2, 'wrong_type': 1, 'broken_file': 1}
  assert problems['counts'] == counts
  assert any("there are ['text']" in example for example in problems['examples'])


@pytest.mark.parametrize('source', [JsonLines, TextFiles, Parquet])
def test_a_pattern_without_a_file_is_an_error(tmp_path, source):
  (tmp_path / 'a.x').write_text('x')
  with pytest.raises(manifest.StageError, match=r'nothing/\*\.y'):
    read(source((str(tmp_path / '*.x'), 'nothing/*.y')))


def test_names_do_not_depend_on_where_the_files_are(tmp_path):
  for root in ('here', 'there'):
    (tmp_path / root / 'part').mkdir(parents=True)
    (tmp_path / root / 'part' / 'a.txt').write_text('x')
  names = [matching_files(f'{tmp_path}/{root}/*/a.txt')[0][0] for root in ('here', 'there')]
  assert names == ['part/a.txt', 'part/a.txt']
  both = (f'{tmp_path}/here/*/a.txt', f'{tmp_path}/here/part/a.txt')
  assert len(matching_files(both)) == 1


def test_tfds(tmp_path):
  tf = pytest.importorskip('tensorflow')
  tfds = pytest.importorskip('tensorflow_datasets')
  folder = tmp_path / 'tiny' / '1.0.0'
  folder.mkdir(parents=True)
  features = tfds.features.FeaturesDict({'text': tfds.features.Text(), 'n': np.int64})
  with tf.io.TFRecordWriter(str(folder / 'tiny-train.tfrecord-00000-of-00001')) as writer:
    for n, text in enumerate((b'one', b'\xff', b'three')):
      example = features.encode_example({'text': text, 'n': n})
      writer.write(features.serialize_example(example))
  template = tfds.core.ShardedFileTemplate(
    data_dir=folder, dataset_name='tiny', split='train', filetype_suffix='tfrecord'
  )
  split = tfds.core.SplitInfo('train', shard_lengths=[3], num_bytes=0, filename_template=template)
  tfds.folder_dataset.write_metadata(data_dir=folder, features=features, split_infos=[split])
  documents, problems = read(TfdsText('tiny', data_dir=str(tmp_path)))
  assert [d.text for d in documents] == ['one', 'three']
  assert len({d.id for d in documents}) == 2 and str(tmp_path) not in documents[0].id
  assert problems['counts'] == {'broken_utf8': 1}
  _, problems = read(TfdsText('tiny', text_key='body', data_dir=str(tmp_path)))
  assert problems['counts'] == {'missing_text': 3}
  with pytest.raises(manifest.StageError, match="'tiny', split 'test'"):
    read(TfdsText('tiny', split='test', data_dir=str(tmp_path)))


def test_zst_and_capital_suffixes_are_unpacked(tmp_path):
  line = json.dumps({'text': 'packed'}).encode() + b'\n'
  frames = zstandard.compress(line) + zstandard.compress(line)
  (tmp_path / 'a.jsonl.zst').write_bytes(frames)
  (tmp_path / 'b.jsonl.GZ').write_bytes(gzip.compress(line))
  (tmp_path / 'c.jsonl.zst').write_bytes(zstandard.compress(line * 9999)[:-9])
  documents, problems = read(JsonLines(str(tmp_path / '*')))
  assert [d.id for d in documents][:3] == ['a.jsonl.zst:1', 'a.jsonl.zst:2', 'b.jsonl.GZ:1']
  assert problems['counts'] in ({'broken_file': 1}, {'not_json': 1})
  (tmp_path / 'd.txt.zst').write_bytes(zstandard.compress(b'a text'))
  assert read(TextFiles(str(tmp_path / 'd.*')))[0][0].text == 'a text'


@pytest.mark.parametrize('source', [TextFiles, JsonLines, Parquet, Arrow])
def test_a_file_that_may_not_be_read_is_one_problem(tmp_path, source, monkeypatch):
  path = tmp_path / 'secret'
  path.write_text('x')

  def refuse(*args, **kwargs):
    raise PermissionError(13, 'Permission denied', str(path))

  monkeypatch.setattr(type(path), 'open', refuse)  # rights do not stop every user
  monkeypatch.setattr(pq, 'ParquetFile', refuse)
  monkeypatch.setattr(pa, 'OSFile', refuse)
  documents, problems = read(source(str(tmp_path / '*')))
  assert not documents and problems['counts'] == {'unreadable_file': 1}
  assert 'Permission denied' in problems['examples'][0]


@pytest.mark.parametrize('source', [TextFiles, JsonLines])
def test_a_file_name_that_is_not_utf8_is_one_problem(tmp_path, source):
  bad = os.fsencode(tmp_path) + b'/caf\xe9.jsonl'
  with open(bad, 'wb') as file:
    file.write(b'{"text": "x"}')
  (tmp_path / 'good.jsonl').write_text('{"text": "y"}')
  documents, problems = read(source(str(tmp_path / '*.jsonl')))
  assert len(documents) == 1 and problems['counts'] == {'broken_utf8': 1}
  assert '\\udce9' in problems['examples'][0]


def test_an_id_with_half_a_character_is_one_problem(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"id": "bad\\ud83d", "text": "fine"}\n{"id": "good", "text": "fine too"}')
  documents, problems = read(JsonLines(str(path), id_key='id'))
  assert [d.id for d in documents] == ['good']
  assert problems['counts'] == {'broken_utf8': 1}
  assert problems['examples'][0].startswith(f'{path}:1: ')


def test_brackets_in_a_path_that_exists_are_no_wildcard(tmp_path):
  folder = tmp_path / 'docs [1]'
  folder.mkdir()
  (folder / 'a [2].txt').write_text('x')
  (folder / 'b.txt').write_text('y')
  assert [name for name, _ in matching_files(str(folder / '*.txt'))] == ['a [2].txt', 'b.txt']
  assert [name for name, _ in matching_files(str(folder / 'a [2].txt'))] == ['a [2].txt']
  assert [name for name, _ in matching_files(str(folder / '[b].txt'))] == ['b.txt']


@pytest.mark.parametrize(
  'kind', [pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.large_binary()]
)
def test_columns_of_every_kind_of_string(tmp_path, kind):
  values = pa.array([b'one' if pa.types.is_large_binary(kind) else 'one', None]).cast(kind)
  table = pa.table({'text': values})
  pq.write_table(table, tmp_path / 'a.parquet')
  for name, write in (('a.arrow', pa.ipc.new_stream), ('b.arrow', pa.ipc.new_file)):
    with write(tmp_path / name, table.schema) as writer:
      writer.write_table(table)
  for source in (Parquet(str(tmp_path / '*.parquet')), Arrow(str(tmp_path / '*.arrow'))):
    documents, problems = read(source)
    assert {d.text for d in documents} == {'one'}
    assert set(problems['counts']) == {'missing_text'}


def test_a_damaged_arrow_file_is_one_problem(tmp_path):
  (tmp_path / 'a.arrow').write_bytes(b'ARROW1\0\0 cut short')
  (tmp_path / 'b.arrow').write_bytes(b'')
  documents, problems = read(Arrow(str(tmp_path / '*.arrow')))
  assert not documents and problems['counts'] == {'broken_file': 2}

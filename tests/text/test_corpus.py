"""The corpus stage: split, order, duplicates, bad input."""

import dataclasses
import hashlib
import resource

import pytest

from instructretro_jax.pipeline import manifest, stage
from instructretro_jax.text import corpus, spool
from instructretro_jax.text.documents import Document
from instructretro_jax.text.sources import JsonLines


@dataclasses.dataclass(frozen=True)
class Given:
  """A source of given documents: (id, text, source, group)."""

  rows: tuple[tuple[str, str, str, str], ...]

  def read(self, problems):
    del problems
    for row in self.rows:
      yield Document(*row)


ROWS = tuple((f'd{n}', f'text {n}', f's{n % 2}', f'g{n % 40}') for n in range(200))


def build(root, *sources, **fields):
  fields = {'heldout_fraction': 0.25, 'num_shards': 3} | fields
  return stage.run(corpus.Corpus(sources=sources, **fields), root)


def read(root, split):
  folder = root / 'corpus'
  return [list(corpus.read_documents(folder, split, n)) for n in range(corpus.num_shards(folder))]


def flat(root, split):
  return [document for shard in read(root, split) for document in shard]


def test_everything_is_written_once_and_counted(tmp_path):
  counts = build(tmp_path, Given(ROWS[:120]), Given(ROWS[120:])).counts
  train, heldout = flat(tmp_path, 'train'), flat(tmp_path, 'heldout')
  written = sorted(dataclasses.astuple(d) for d in train + heldout)
  assert written == sorted(ROWS)
  names = {path.name for path in (tmp_path / 'corpus').iterdir()}
  assert names == {f'{split}-0000{n}.parquet' for split in corpus.SPLITS for n in range(3)} | {
    manifest.MANIFEST
  }
  for split, documents in (('train', train), ('heldout', heldout)):
    num_bytes = sum(len(d.text) for d in documents)
    assert counts[split] == {'documents': len(documents), 'bytes': num_bytes}
  assert counts['sources']['s1']['train_documents'] == sum(d.source == 's1' for d in train)
  assert 20 < len(heldout) < 90  # a quarter of 200, in groups of five


def test_no_group_is_on_both_sides(tmp_path):
  build(tmp_path, Given(ROWS))
  groups = [{d.group for d in flat(tmp_path, split)} for split in corpus.SPLITS]
  assert all(groups) and not groups[0] & groups[1]


def test_without_groups_the_documents_are_split(tmp_path):
  build(tmp_path, Given(tuple((*row[:3], '') for row in ROWS)))
  assert 25 < len(flat(tmp_path, 'heldout')) < 80


def test_order_is_by_hash_of_seed_and_id(tmp_path):
  build(tmp_path, Given(ROWS), seed=5)
  for shard in read(tmp_path, 'train'):
    hashes = [hashlib.sha256(f'5/order/{d.id}'.encode()).digest() for d in shard]
    assert len(shard) > 20 and hashes == sorted(hashes)


def file_bytes(root):
  return {path.name: path.read_bytes() for path in sorted((root / 'corpus').glob('*.parquet'))}


def test_the_order_of_reading_leaves_the_bytes_alone(tmp_path):
  # Duplicates, equal ids and both together: where the order of reading could show.
  rows = (
    *ROWS,
    ('d3', 'another text', 's0', 'g3'),
    ('e1', 'text 7', 's0', 'g1'),
    ('d9', 'text 9', 's0', 'g2'),
  )
  build(tmp_path / 'a', Given(rows))
  build(tmp_path / 'b', Given(rows[::-1]))
  build(tmp_path / 'c', Given(rows[77:]), Given(rows[:77]))
  assert len(file_bytes(tmp_path / 'a')) == 6
  assert file_bytes(tmp_path / 'a') == file_bytes(tmp_path / 'b') == file_bytes(tmp_path / 'c')


def test_the_seed_matters(tmp_path):
  build(tmp_path / 'a', Given(ROWS))
  build(tmp_path / 'b', Given(ROWS), seed=1)
  heldout = [{d.group for d in flat(tmp_path / root, 'heldout')} for root in 'ab']
  assert heldout[0] != heldout[1]


def test_equal_texts_are_kept_once_across_splits_and_sources(tmp_path):
  copies = tuple((f'copy{n}', f'text {n}', 'copies', f'other{n}') for n in range(100))
  counts = build(tmp_path, Given(ROWS), Given(copies)).counts
  texts = [d.text for split in corpus.SPLITS for d in flat(tmp_path, split)]
  assert len(texts) == len(set(texts)) == 200
  assert counts['duplicates'] == 100


def test_equal_ids_of_other_texts_are_made_distinct(tmp_path):
  again = tuple((f'd{n}', f'second {n}', 's', '') for n in range(50))
  first = tuple((*row[:3], '') for row in ROWS)
  counts = build(tmp_path, Given(first), Given(again)).counts
  sides = {}
  for split in corpus.SPLITS:
    for d in flat(tmp_path, split):
      assert d.id not in sides
      sides[d.id] = (split, d.id.split('#')[0])
  assert len(sides) == 250 and counts['renamed_ids'] == 100
  assert len(set(sides.values())) == 200  # both of one id are on one side


def test_a_kill_while_reading_or_writing_changes_nothing(tmp_path, monkeypatch):
  build(tmp_path / 'straight', Given(ROWS))
  write, calls = corpus._write_shard, []

  def killed(path, documents):
    calls.append(path)
    if len(calls) == 4:
      raise KeyboardInterrupt
    write(path, documents)

  monkeypatch.setattr(corpus, '_write_shard', killed)
  with pytest.raises(KeyboardInterrupt):
    build(tmp_path / 'killed', Given(ROWS))
  monkeypatch.undo()
  build(tmp_path / 'killed', Given(ROWS))
  files = [manifest.read_manifest(tmp_path / root / 'corpus') for root in ('straight', 'killed')]
  assert files[0].fingerprint == files[1].fingerprint


def test_bad_input_is_counted_or_refused(tmp_path):
  lines = [f'{{"text": "text {n}"}}' for n in range(60)] + ['{', '{"text": "' + 'x' * 99 + '"}']
  (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
  source = JsonLines(str(tmp_path / 'a.jsonl'))
  found = build(tmp_path, source, max_document_bytes=50).counts['problems']
  assert found['counts'] == {'not_json': 1, 'too_long': 1}
  assert 'a.jsonl:61' in found['examples'][0]
  with pytest.raises(manifest.StageError, match='a.jsonl:61'):
    build(tmp_path / 'other', source, on_bad_input='refuse')


def test_no_document_or_an_empty_split_is_an_error(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{\n')
  with pytest.raises(manifest.StageError, match='no document.*not_json'):
    build(tmp_path / 'a', JsonLines(str(tmp_path / 'a.jsonl')))
  with pytest.raises(manifest.StageError, match='heldout split'):
    build(tmp_path / 'b', Given(ROWS[:1]), heldout_fraction=1e-6)
  with pytest.raises(manifest.StageError, match='train split'):
    build(tmp_path / 'c', Given(ROWS[:1]), heldout_fraction=1 - 1e-6)


def test_impossible_fields_are_rejected():
  with pytest.raises(ValueError, match='at least one source'):
    corpus.Corpus(sources=(), heldout_fraction=0.1)
  for field in ({'heldout_fraction': 0.0}, {'num_shards': 0}, {'on_bad_input': 'ask'}):
    with pytest.raises(ValueError, match=str(next(iter(field.values())))):
      corpus.Corpus(**({'sources': (Given(ROWS),), 'heldout_fraction': 0.1} | field))


def test_a_missing_shard_or_corpus_is_named(tmp_path):
  build(tmp_path, Given(ROWS))
  with pytest.raises(manifest.StageError, match='test-00000.*shards 0 to 2'):
    next(corpus.read_documents(tmp_path / 'corpus', 'test', 0))
  with pytest.raises(manifest.StageError, match='holds no corpus'):
    corpus.num_shards(tmp_path)


def test_copies_that_differ_in_white_space_are_one_text(tmp_path):
  forms = ('a\nb {}', 'a\r\nb {}', 'a\nb {}\n', ' a  b {}')
  rows = tuple(
    (f'{n}-{k}', form.format(n), 's', '') for n in range(30) for k, form in enumerate(forms)
  )
  assert build(tmp_path, Given(rows)).counts['duplicates'] == 90
  held, trained = ({' '.join(d.text.split()) for d in flat(tmp_path, s)} for s in corpus.SPLITS)
  assert len(held) + len(trained) == 30 and not held & trained


def test_one_id_spaced_differently_does_not_depend_on_the_order_of_reading(tmp_path):
  rows = (*ROWS, ('d0', 'text  0', 's0', 'g0'))
  one, other = (
    build(tmp_path / name, Given(order)).fingerprint
    for name, order in (('a', rows), ('b', rows[::-1]))
  )
  manifests = [manifest.read_manifest(tmp_path / name / 'corpus') for name in 'ab']
  assert manifests[0].files == manifests[1].files and one and other


def test_more_shards_than_files_may_be_open(tmp_path, monkeypatch):
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
  monkeypatch.setattr(spool, '_WAITING_CHARS', 1000)
  try:
    counts = build(tmp_path, Given(ROWS), num_shards=150).counts
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
  assert counts['train']['documents'] + counts['heldout']['documents'] == 200


def test_documents_that_are_lost_on_the_disk_are_noticed(tmp_path, monkeypatch):
  whole = spool.Spool.read
  monkeypatch.setattr(spool.Spool, 'read', lambda path: list(whole(path))[1:])
  with pytest.raises(manifest.StageError, match='197 documents where 200 were read'):
    build(tmp_path, Given(ROWS))


def test_other_fields_may_be_tried_after_a_refusal(tmp_path):
  with pytest.raises(manifest.StageError, match='change heldout_fraction'):
    build(tmp_path, Given(ROWS[:2]), heldout_fraction=1e-6)
  build(tmp_path, Given(ROWS[:40]), heldout_fraction=0.5)


def test_a_pattern_that_matches_nothing_may_be_corrected(tmp_path):
  (tmp_path / 'a.jsonl').write_text('\n'.join(f'{{"text": "text {n}"}}' for n in range(60)))
  with pytest.raises(manifest.StageError, match='no file matches'):
    build(tmp_path, JsonLines(f'{tmp_path}/*.json'))
  build(tmp_path, JsonLines(f'{tmp_path}/*.jsonl'))


@pytest.mark.parametrize('field', range(4))
def test_half_a_character_in_any_field_is_one_problem(tmp_path, field):
  bad = ['x', 'x', 'x', 'x']
  bad[field] = 'cut \ud83d'
  counts = build(tmp_path, Given((*ROWS, tuple(bad)))).counts
  assert sum(counts['problems']['counts'].values()) == 1

"""What every stage does with its files, in a store as on disk."""

import json
import os
import re

import numpy as np
import pytest

from instructretro_jax.pipeline import atomic, experiment, gin_adapter, manifest, paths
from instructretro_jax.pipeline.array_store import StoredArray, has_shard, write_shard
from instructretro_jax.pipeline.growing import GrowingFiles
from instructretro_jax.pipeline.local_copy import local
from instructretro_jax.text.files import matching_files, open_file


@pytest.mark.parametrize('name', ['ftp://host/name', 'gs://', 's3:///', 'memory://a/b'])
def test_other_addresses_are_refused(name):
  with pytest.raises(OSError, match=re.escape('neither a folder, nor gs://BUCKET/NAME')):
    paths.to_path(name)


def test_files_are_written_read_listed_moved_and_removed(store):
  manifest.write_text(store / 'a' / 'one.txt', 'one')
  manifest.write_text(store / 'a' / 'deep' / 'two.txt', 'second')
  assert paths.files_below(store) == {'a/deep/two.txt': 6, 'a/one.txt': 3}
  assert paths.read_range(store / 'a' / 'deep' / 'two.txt', 1, 4) == b'eco'
  before = paths.version_of(store / 'a' / 'one.txt')
  manifest.write_text(store / 'a' / 'one.txt', 'new')
  assert paths.version_of(store / 'a' / 'one.txt') != before
  paths.move(store / 'a', store / 'b')
  assert paths.files_below(store) == {'b/deep/two.txt': 6, 'b/one.txt': 3}
  paths.remove(store / 'b')
  paths.remove(store / 'b')
  assert paths.files_below(store) == {}


def test_a_folder_is_whole_when_all_of_it_is_there(store, monkeypatch):
  def write(content):
    with atomic.atomic(store / 'folder') as partial:
      (partial / 'inside').mkdir(parents=True)
      (partial / 'inside' / 'a').write_text(content)
      (partial / 'z').write_text(content)

  real, puts = paths.store(store).put_file, []

  def put_file(source, target, **options):
    puts.append(target)
    if len(puts) == 2:
      raise KeyboardInterrupt  # as a kill between two files
    return real(source, target, **options)

  monkeypatch.setattr(paths.store(store), 'put_file', put_file)
  with pytest.raises(KeyboardInterrupt):
    write('first')
  assert len(paths.files_below(store)) == 1 and not atomic.is_whole(store / 'folder')
  write('second')
  assert atomic.is_whole(store / 'folder')
  assert (store / 'folder' / 'z').read_text() == (store / 'folder' / 'inside' / 'a').read_text()


def test_what_fails_half_way_leaves_nothing(store):
  with pytest.raises(ZeroDivisionError), atomic.atomic(store / 'file') as partial:
    partial.write_text('half')
    raise ZeroDivisionError
  assert paths.files_below(store) == {}


def test_arrays_are_gathered_where_they_lie(store):
  rows = np.arange(3000, dtype=np.int32).reshape(-1, 3)
  assert not has_shard(store, 'rows', 0)
  for shard in (0, 1):
    write_shard(store, 'rows', shard, rows + shard)
  assert has_shard(store, 'rows', 1)
  stored = StoredArray(store, 'rows')
  np.testing.assert_array_equal(stored[[1999, 0, 1000]], [rows[999] + 1, rows[0], rows[0] + 1])


def test_copies_are_shared_renewed_mended_and_bounded(store, tmp_path, monkeypatch):
  manifest.write_text(store / 'model' / 'weights', 'w' * 100)
  first = local(store / 'model')
  assert (first / 'weights').read_text() == 'w' * 100 and local(store / 'model') == first
  (first / 'weights').write_text('cut')
  assert (local(store / 'model') / 'weights').read_text() == 'w' * 100
  manifest.write_text(store / 'model' / 'weights', 'v' * 100)
  second = local(store / 'model')
  assert second != first and (second / 'weights').read_text() == 'v' * 100
  os.utime(first.parent, (0, 0))
  monkeypatch.setenv('INSTRUCTRETRO_CACHE_GB', '1.5e-7')
  manifest.write_text(store / 'other', 'o')
  assert local(store / 'other').read_text() == 'o'
  assert not first.exists() and second.exists()
  with pytest.raises(FileNotFoundError):
    local(store / 'absent')


def test_a_pattern_matches_in_a_store(store):
  for name in ('text/a.txt', 'text/deep/b.txt', 'text/c.md', 'text/.d.txt'):
    manifest.write_text(store / name, name)
  found = matching_files(f'{store}/text/**/*.txt')
  assert [name for name, _ in found] == ['a.txt', 'deep/b.txt']
  assert [open_file(path).read().decode() for _, path in found] == ['text/a.txt', 'text/deep/b.txt']
  assert matching_files(f'{store}/text/c.md')[0][0] == 'c.md'
  with pytest.raises(manifest.StageError, match='no file matches'):
    matching_files(f'{store}/text/*.pdf')


def test_files_that_grow_go_on_from_what_was_copied(store):
  for line in ('one', 'two'):
    files = GrowingFiles(store / 'logs', goes_on=('log',))
    with (files.here / 'log').open('a') as file:
      file.write(f'{line}\n')
    files.push()
    assert (store / 'logs' / 'log').read_text().endswith(f'{line}\n')
    files.close()
  assert (store / 'logs' / 'log').read_text() == 'one\ntwo\n'


def test_a_manifest_that_another_run_has_written_is_not_overwritten(store):
  plan = manifest.Plan('Stage', {}, {})
  manifest.begin(store, plan)
  manifest.write_text(store / 'data', 'data')
  manifest.commit(store, plan, {'rows': 1}, frozenset())
  assert list(manifest.read_manifest(store).files) == ['data']
  manifest.commit(store, plan, {'rows': 1}, frozenset())  # the same: a request that was repeated
  with pytest.raises(manifest.StageError, match='finished by another run meanwhile'):
    manifest.commit(store, plan, {'rows': 2}, frozenset())
  assert json.loads((store / manifest.MANIFEST).read_text())['counts'] == {'rows': 1}


def test_a_gin_file_and_what_it_includes_may_lie_there(store):
  manifest.write_text(store / 'values.gin', 'EXPERIMENT_STAGES = ()\n')
  text = "include 'values.gin'\nexperiment.Experiment.stages = %EXPERIMENT_STAGES\n"
  head = 'from __gin__ import dynamic_registration\n'
  head += 'from instructretro_jax.pipeline import experiment\n'
  manifest.write_text(store / 'run.gin', head + text)
  made, _ = gin_adapter.configure(experiment.Experiment, [f'{store}/run.gin'], [])
  assert made.stages == ()
  with pytest.raises(manifest.StageError, match='there is no file .*absent.gin'):
    gin_adapter.configure(experiment.Experiment, [f'{store}/absent.gin'], [])

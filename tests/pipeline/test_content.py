"""Files that an experiment names are known by what they hold."""

import dataclasses
import os
from pathlib import Path

import pytest

from instructretro_jax.pipeline import content, manifest, stage


@dataclasses.dataclass(frozen=True)
class Inner:
  path: str

  def input_files(self):
    return (Path(self.path),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copy(stage.Stage):
  inner: tuple[Inner, ...]

  def build(self, root, folder):
    manifest.write_text(folder / 'text', ''.join(Path(i.path).read_text() for i in self.inner))
    return {}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('INSTRUCTRETRO_CACHE', str(tmp_path / 'cache'))


def test_another_content_is_another_plan(tmp_path):
  given = tmp_path / 'given'
  given.write_text('old')
  member = Copy(name='a', inner=(Inner(str(given)),))
  stage.run(member, tmp_path)
  assert stage.is_up_to_date(member, tmp_path)
  given.write_text('new')
  with pytest.raises(manifest.StageError, match='(?s)another configuration.*file .*given'):
    stage.run(member, tmp_path)
  given.unlink()  # what was made of it stays what it is
  assert stage.is_up_to_date(member, tmp_path)


def test_a_file_is_read_again_only_if_it_changed(tmp_path, monkeypatch):
  given = tmp_path / 'given'
  given.write_text('old')
  first = content.content_sha256(given)
  monkeypatch.setattr(manifest, 'file_sha256', lambda path: 'read anew')
  assert content.content_sha256(given) == first
  os.utime(given, ns=(0, 0))
  assert content.content_sha256(given) == 'read anew'

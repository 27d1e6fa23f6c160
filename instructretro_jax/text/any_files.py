"""Reader of a folder of the user's own files, each read as its name says."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
from pathlib import Path, PurePosixPath

from instructretro_jax.pipeline.paths import to_path
from instructretro_jax.text.documents import Document, Problems, Source
from instructretro_jax.text.files import Pattern, named_files
from instructretro_jax.text.sources import Arrow, JsonLines, Parquet, TextFiles

_READERS = {'.jsonl': JsonLines, '.json': JsonLines, '.parquet': Parquet, '.arrow': Arrow}
_PACKED = ('.gz', '.zst')


@dataclasses.dataclass(frozen=True)
class AnyFiles:
  """The documents of a folder, or of the files that `pattern` matches, each as its name ends.

  JSON (`.jsonl`, `.json`), `.parquet` and `.arrow` are read as the classes for them do by default,
  all other files as TextFiles. Of a folder, all files are read that it has at any depth, but for
  those whose names begin with a dot.
  """

  pattern: Pattern

  def read(self, problems: Problems) -> Iterator[Document]:
    """Yields file by file, in order of path. Raises StageError if there is no file."""
    given = (self.pattern,) if isinstance(self.pattern, str) else self.pattern
    for name, path in named_files(tuple(map(_files_of, given)), problems):
      folder = PurePosixPath(name).parent
      for document in _reader(path).read(problems):
        yield Document(str(folder / document.id), document.text, document.source)


def _files_of(pattern: str) -> str:
  """A pattern of files: of those of a folder, if that is what is named."""
  return f'{pattern}/**/*' if to_path(pattern).is_dir() else pattern


def _reader(path: Path) -> Source:
  suffixes = [suffix.lower() for suffix in path.suffixes]
  if suffixes and suffixes[-1] in _PACKED:
    suffixes.pop()
  return _READERS.get(suffixes[-1] if suffixes else '', TextFiles)(str(path))

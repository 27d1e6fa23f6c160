"""Documents on their way to the shards of a corpus."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import json
from pathlib import Path

from instructretro_jax.text.documents import Document

_WAITING_CHARS = 1 << 26  # in memory


class Spool:
  """Documents in a file for each shard, of which none stays open: there may be many shards."""

  def __init__(self, folder: Path, num_shards: int):
    self._paths = [folder / str(shard) for shard in range(num_shards)]
    self._lines: list[list[str]] = [[] for _ in self._paths]
    self._num_chars = 0

  def add(self, shard: int, document: Document) -> None:
    """Takes a document."""
    line = json.dumps(dataclasses.asdict(document)) + '\n'
    self._lines[shard].append(line)
    self._num_chars += len(line)
    if self._num_chars > _WAITING_CHARS:
      self.flush()

  def flush(self) -> None:
    """Appends what was taken to the files."""
    for path, lines in zip(self._paths, self._lines):
      if lines:
        with path.open('a', encoding='utf-8') as file:
          file.writelines(lines)
        lines.clear()
    self._num_chars = 0

  @staticmethod
  def read(path: Path) -> Iterator[Document]:
    """The documents of a shard."""
    if path.exists():
      with path.open(encoding='utf-8') as file:
        for line in file:
          yield Document(**json.loads(line))

"""Files of other people: what they turn out to be, in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from instructretro_jax.pipeline.manifest import StageError

_POINTER = b'version https://git-lfs.github.com/spec/'


def check(path: Path) -> None:
  """Raises StageError if a file is missing, empty, or stands for another that was not fetched."""
  if not path.is_file():
    raise StageError(f'{path} does not exist, or is no file')
  with path.open('rb') as file:
    begin = file.read(len(_POINTER))
  if begin == _POINTER:
    raise StageError(
      f'{path} is a Git LFS pointer of {path.stat().st_size} bytes, not the file itself: fetch it '
      'with git lfs pull'
    )
  if not begin:
    raise StageError(f'{path} is empty: fetch it again')


def read_json(path: Path) -> dict[str, Any]:
  """The object that a JSON file holds. Raises StageError if there is none."""
  check(path)
  try:
    content = json.loads(path.read_text(encoding='utf-8-sig'))
  except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
    raise StageError(f'{path} is no JSON: {error}') from error
  if not isinstance(content, dict):
    raise StageError(f'{path} holds no JSON object, but {type(content).__name__}')
  return content


def shorten(names: list[str], shown: int = 6) -> str:
  """A list in one line: the first few, and how many more there are."""
  more = len(names) - shown
  return '; '.join([*names[:shown], *([f'and {more} more'] if more > 0 else [])])

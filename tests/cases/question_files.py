"""Small files of rows, and how a set reads them."""

import json

import pytest

from instructretro_jax.text.documents import Problems


@pytest.fixture
def write_rows(tmp_path):
  """A function (rows, name) -> the path of a file of them."""

  def write(rows, name='rows.jsonl'):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(map(json.dumps, rows)))
    return str(path)

  return write


def read(one):
  problems = Problems()
  return list(one.read(problems)), problems.to_json()

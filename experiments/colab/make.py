"""Makes the notebook of each py:percent file of this folder; needs the extra `notebooks`.

Run from the root of the repository, after a change:
  python experiments/colab/make.py
"""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat

FOLDER = Path(__file__).parent


def sources() -> list[Path]:
  """The files that notebooks are made of."""
  return sorted(path for path in FOLDER.glob('*.py') if path.name != Path(__file__).name)


def notebook(path: Path) -> str:
  """The notebook of a py:percent file, without outputs; the same text each time."""
  made = jupytext.read(path)
  made.metadata = {'kernelspec': made.metadata['kernelspec']}
  for number, cell in enumerate(made.cells):
    cell.id = f'{path.stem}-{number}'  # which jupytext draws at random
  return nbformat.writes(made) + '\n'


if __name__ == '__main__':
  for source in sources():
    source.with_suffix('.ipynb').write_text(notebook(source))

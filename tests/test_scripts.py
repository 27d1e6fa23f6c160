"""Scripts of experiments: each can be loaded with the package as it is."""

from pathlib import Path
import runpy
import sys

import pytest

FOLDER = Path(__file__).parent.parent / 'experiments'
SCRIPTS = sorted([*(FOLDER / 'benchmarks').glob('*.py'), *(FOLDER / 'gpu').glob('*.py')])


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.stem)
def test_a_script_loads(path, monkeypatch):
  monkeypatch.setattr(sys, 'path', [str(path.parent), *sys.path])
  runpy.run_path(str(path), run_name='loaded')

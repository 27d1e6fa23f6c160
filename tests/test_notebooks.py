"""Notebooks: what is beside each source is made of it, and all of them run from first to last."""

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow(minutes=1)
jupytext = pytest.importorskip('jupytext', reason='comes with the extra notebooks')
nbclient = pytest.importorskip('nbclient', reason='comes with the extra notebooks')

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / 'experiments' / 'colab'
SOURCES = sorted(path for path in FOLDER.glob('*.py') if path.name != 'make.py')


def make():
  spec = importlib.util.spec_from_file_location('make', FOLDER / 'make.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def execute(name, **parameters):
  """Runs a notebook with other parameters; returns the kinds of its outputs, and its text."""
  notebook = jupytext.read(FOLDER / f'{name}.py')
  (cell,) = [c for c in notebook.cells if 'parameters' in c.metadata.get('tags', ())]
  lines = cell.source.splitlines()
  assert parameters.keys() <= {line.partition(' =')[0] for line in lines}
  cell.source = '\n'.join([*lines, *(f'{name} = {value!r}' for name, value in parameters.items())])
  place = {'metadata': {'path': str(ROOT)}}
  nbclient.NotebookClient(notebook, timeout=1200, kernel_name='python3', resources=place).execute()
  outputs = [o for c in notebook.cells if c.cell_type == 'code' for o in c.outputs]
  kinds = [kind for output in outputs for kind in output.get('data', ())]
  return kinds, ''.join(output.get('text', '') for output in outputs)


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: path.stem)
def test_a_notebook_is_what_its_source_makes(path):
  assert path.with_suffix('.ipynb').read_text() == make().notebook(path)
  assert path.stem in (FOLDER / 'README.md').read_text()


@pytest.mark.packages
@pytest.mark.slow(minutes=4)
def test_a_quickstart_and_a_look_inside(tmp_path, tiny_documents):
  root = str(tmp_path / 'root')
  given = [f"DOCUMENTS = '{tiny_documents}/*.txt'"]
  kinds, said = execute('quickstart', ROOT=root, EXPERIMENT='tests/tiny.gin', BINDINGS=given)
  assert kinds.count('image/svg+xml') >= 3  # lengths of training, and runs
  assert 'retro_fit: done' in said
  kinds, said = execute('look_inside', ROOT=root, NUM_CHUNKS=2, MAX_NEW=4)
  assert 'image/png' in kinds and 'text/html' in kinds
  assert 'neighbour ' in said and 'nats a token' in said
  assert '--- gate 1\n' in said and '--- gate 0\n' in said


@pytest.mark.slow(minutes=2)
def test_a_model_of_ones_own(tmp_path, tiny_documents):
  kinds, said = execute(
    'retrofit_own_model',
    ROOT=str(tmp_path / 'root'),
    MODEL=str(ROOT / 'tests/golden/hf/llama'),
    DOCUMENTS=str(tiny_documents),
    FIT_STEPS=3,
    BINDINGS=['CHUNK_LEN = 16', 'SEQ_LEN = 64', 'EVAL_SEQUENCES = 2', 'HELDOUT_FRACTION = 0.3'],
  )
  assert kinds.count('image/svg+xml') == 2
  assert 'export/huggingface/model.safetensors' in said

"""The worked examples of CONTRIBUTING.md, and the Python of the README, run."""

from pathlib import Path
import re

import numpy as np
import pytest

from instructretro_jax.examples.stream import batches
from instructretro_jax.pipeline import configuration
from instructretro_jax.text.documents import Problems

ROOT = Path(__file__).parent.parent


def blocks(page):
  return re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(), re.DOTALL)


@pytest.fixture(scope='module')
def examples():
  names = {'__name__': 'my_module'}
  for block in blocks('CONTRIBUTING.md'):
    exec(block, names)
  return names


def test_a_corpus(examples):
  problems = Problems()
  source = examples['Countries'](lines=('Peru: in the Andes', 'nothing', 'Chad: has a lake'))
  assert [d.id for d in source.read(problems)] == ['Peru', 'Chad']
  assert problems.to_json()['counts'] == {'no_name': 1}


def test_an_embedder(examples, tmp_path):
  embedder = examples['HashedWords'](width=32)
  embedder.fit(['a b'], tmp_path)
  vectors = embedder.load(tmp_path)(['a b', 'b a', 'c'])
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
  np.testing.assert_array_equal(vectors[0], vectors[1])
  assert configuration.to_json(embedder) == {'class': 'my_module.HashedWords', 'width': 32}


def test_a_model_family(examples):
  assert examples['decoder'].kv_heads == 3 and examples['decoder'].head_width == 64


def test_a_task(examples):
  task = examples['CountingTask'](seq_len=8)
  source = task.source(ROOT, 'train')
  first, second = batches(source, seed=0, start=0, stop=8, batch_size=4)
  assert (first['targets'] == first['tokens'] + 1).all() and first['tokens'].shape == (4, 8)
  assert (first['tokens'][:, 0] != second['tokens'][:, 0]).any()
  assert {n: x.shape[1:] for n, x in first.items()} == {
    name: shape for name, (shape, _) in task.example_specs(4, is_open=False).items()
  }


def test_the_python_of_the_readme_scores_a_text(run_with_arm, capsys):
  (block,) = blocks('README.md')
  exec(block.replace('runs/quickstart/gpt_fit', str(run_with_arm / 'imported')), {})
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) > 3 and lines[0].endswith('None') and float(lines[1].split()[-1]) < 0

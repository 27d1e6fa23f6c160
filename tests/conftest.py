"""Strict numerics and quick compilation for the whole suite."""

import os
import tempfile

from instructretro_jax.pipeline import quiet

# XLA's older code generator, in one thread, compiles tiny programs in a quarter of the time
os.environ.setdefault(
  'XLA_FLAGS', '--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
)

quiet.quieten()  # before JAX and TensorFlow, which read it, are imported

import jax  # noqa: E402
import pytest  # noqa: E402

pytest_plugins = [
  'tests.slow_third',
  'tests.retrieval.fixtures',
  'tests.inference.fixtures',
  'tests.cases.question_files',
]

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_default_matmul_precision', 'highest')
# most of the time of the tests is compilation, of programs that are tiny
jax.config.update('jax_disable_most_optimizations', True)
# and a stage that is killed and run again would compile all of it again. The first process makes
# the folder, others inherit it. One that reads what another has half written compiles by itself.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  _COMPILED = tempfile.TemporaryDirectory(prefix='instructretro_tests_')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _COMPILED.name
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.3'
jax.config.update('jax_compilation_cache_dir', os.environ['JAX_COMPILATION_CACHE_DIR'])
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


def pytest_collection_modifyitems(items):
  """The longest test first, so that no process is left alone with it at the end."""
  items.sort(key=lambda item: item.get_closest_marker('longest') is None)


@pytest.fixture
def tiny_documents(tmp_path):
  """Twelve text files that share sentences, so that retrieval finds something."""
  folder = tmp_path / 'documents'
  folder.mkdir()
  sentences = [
    f'The {noun} number {n} lies {n * 7} metres above the {place}, and is painted {colour}.'
    for n in range(12)
    for noun, place, colour in [('tower', 'harbour', 'red'), ('bridge', 'valley', 'green')]
  ]
  for n in range(12):
    text = '\n'.join(sentences[(n * 2 + k * 5) % len(sentences)] for k in range(8))
    (folder / f'{n:02d}.txt').write_text(f'Report {n}\n{text}\n')
  return folder

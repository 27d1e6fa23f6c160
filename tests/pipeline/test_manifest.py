"""Configurations as JSON and back, and files that appear whole."""

import dataclasses

import pytest

from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.model.execution import Execution
from instructretro_jax.pipeline import caches, configuration, manifest
from instructretro_jax.pipeline.atomic import atomic

CONFIG = RetroConfig(
  decoder=DecoderConfig(vocab_size=32, num_layers=4, width=8, num_heads=2, ff_width=8),
  cross_attention_layers=(1, 3),
)


@pytest.mark.parametrize('value', [CONFIG, Execution(dtype='bfloat16'), CONFIG.decoder])
def test_a_configuration_comes_back(value):
  assert configuration.from_json(type(value), configuration.to_json(value)) == value


def test_another_class_or_other_fields_are_refused():
  content = configuration.to_json(CONFIG)
  with pytest.raises(manifest.StageError, match='RetroConfig is no Execution of this version'):
    configuration.from_json(Execution, content)
  content['decoder'] |= {'remat': 'minimal'}
  with pytest.raises(manifest.StageError, match=r"\['remat'\]\): make it again"):
    configuration.from_json(RetroConfig, content)


@dataclasses.dataclass(frozen=True)
class Mine:
  """Of a module that is not the package's."""


def test_a_class_of_somebody_else_is_recorded_with_its_module():
  assert configuration.to_json(Mine()) == {'class': 'tests.pipeline.test_manifest.Mine'}


def test_what_breaks_off_leaves_what_was_there(tmp_path):
  path = tmp_path / 'new' / 'file'
  for text in ('first', 'second'):
    with atomic(path) as partial:
      partial.write_text(text)
    assert path.read_text() == text
  with pytest.raises(OSError, match='full'), atomic(path) as partial:
    partial.write_text('half')
    raise OSError('full')
  assert path.read_text() == 'second'
  with atomic(tmp_path / 'folder') as partial:
    partial.mkdir()
    (partial / 'a').touch()
  assert [p.name for p in (tmp_path / 'folder').iterdir()] == ['a']


def test_compiled_programs_are_kept_unless_there_is_a_place(monkeypatch, tmp_path):
  monkeypatch.setenv('INSTRUCTRETRO_CACHE', str(tmp_path))
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'there')
  caches.keep_compiled()
  assert caches.os.environ['JAX_COMPILATION_CACHE_DIR'] == 'there'
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  caches.keep_compiled()
  assert caches.os.environ['JAX_COMPILATION_CACHE_DIR'] == str(tmp_path / 'compiled')

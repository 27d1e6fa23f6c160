"""The command `verify`: bytes, fingerprints and parameters are read again."""

from click.testing import CliRunner
import pytest

from instructretro_jax import main
from instructretro_jax.pipeline import manifest, stage
from tests.pipeline.writing import Write


@pytest.fixture
def root(tmp_path):
  stage.run(Write(name='a', text='whole'), tmp_path)
  stage.run(Write(name='b', text='too', after=('a',)), tmp_path)
  return tmp_path


def verify(folder):
  return CliRunner().invoke(main.main, ['verify', str(folder)])


def test_a_run_that_is_as_it_was_written(root):
  for folder in (root, root / 'a'):
    found = verify(folder)
    assert found.exit_code == 0 and 'all is as it was written' in found.output


def test_a_flipped_byte_is_found(root):
  (root / 'a' / 'text').write_text('whOle')
  found = verify(root)
  assert found.exit_code == 1
  assert f'{root}/a/text holds other bytes than were written' in found.output


def test_missing_and_cut_files_are_found(root):
  (root / 'a' / 'text').unlink()
  (root / 'b' / 'text').write_text('t')
  output = verify(root).output
  assert 'a/text is missing' in output and 'b/text has 1 bytes, not the 3' in output
  assert '2 findings' in output


def test_a_stage_made_of_another_is_found(root):
  stage.discard(Write(name='a', text=''), root)
  stage.run(Write(name='a', text='other'), root)
  assert f'{root}/b was made of another a' in verify(root).output


def test_a_folder_without_a_stage_is_refused(tmp_path):
  with pytest.raises(manifest.StageError, match='holds no finished stage'):
    CliRunner().invoke(main.main, ['verify', str(tmp_path)], catch_exceptions=False)

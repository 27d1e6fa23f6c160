"""The command line."""

import subprocess
import sys

from click.testing import CliRunner
import pytest

from instructretro_jax import main
from instructretro_jax.commands import run


def test_overrides_become_bindings():
  assert run.gin_bindings(['--gin.A=3', '--gin.b/C.d="x=y"']) == ['A = 3', 'b/C.d = "x=y"']
  with pytest.raises(run.click.UsageError, match='--gn.A=3'):
    run.gin_bindings(['--gn.A=3'])


def test_dry_run_names_every_stage_and_writes_nothing(tmp_path):
  result = CliRunner().invoke(
    main.main,
    ['run', '--gin_file=experiments/quickstart/run.gin', f'--root={tmp_path}/r', '--dry_run'],
  )
  assert result.exit_code == 0, result.output
  lines = result.output.splitlines()
  assert lines[0] == 'corpus: would run' and lines[-1] == 'report: would run'
  assert len(lines) == 16
  assert not (tmp_path / 'r').exists()


@pytest.mark.parametrize(
  'command', ['run', 'sweep', 'inspect', 'compare', 'import', 'export', 'precompile']
)
def test_help_has_an_example(command):
  result = CliRunner().invoke(main.main, [command, '--help'])
  assert result.exit_code == 0 and 'Example' in result.output


def test_errors_are_one_line_and_an_exit_code():
  done = subprocess.run(
    [sys.executable, '-m', 'instructretro_jax', 'run', '--gin_file=nowhere.gin'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 1
  assert 'nowhere.gin' in done.stderr and 'Traceback' not in done.stderr

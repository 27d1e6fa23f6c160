"""The command `lm_eval` where the harness is not installed."""

import importlib.util

from click.testing import CliRunner
import pytest

from instructretro_jax import main
from instructretro_jax.pipeline.manifest import StageError


def test_without_arguments_it_says_what_it_takes():
  result = CliRunner().invoke(main.main, ['lm_eval'])
  assert result.exit_code == 0 and '--model_args=checkpoint=' in result.output


def test_without_the_harness_it_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(StageError, match=r"pip install 'instructretro-jax\[lm_eval\]'"):
    CliRunner().invoke(main.main, ['lm_eval', '--help'], catch_exceptions=False)

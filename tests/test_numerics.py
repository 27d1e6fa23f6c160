"""The errors that docs/numerics.md quotes, at a size that takes seconds."""

from pathlib import Path
import runpy

import pytest

from instructretro_jax.model.param_groups import PARTS

SCRIPT = Path(__file__).parents[1] / 'experiments/benchmarks/numerics.py'


@pytest.mark.slow
def test_gradients_are_as_exact_as_their_type():
  script = runpy.run_path(str(SCRIPT))
  config = script['make_config'](width=16, num_layers=1)
  errors = script['relative_errors'](config, seq_len=64, batch_size=8, seed=0)
  for dtype, most in (('float32', 3e-6), ('bfloat16', 0.03)):
    assert set(errors[dtype]) == {*PARTS, 'biases'}
    for group, error in errors[dtype].items():
      assert most / 100 < error < most, (dtype, group)

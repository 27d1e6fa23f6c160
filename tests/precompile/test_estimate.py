"""From counts to seconds and bounds, by hand."""

import pytest

from instructretro_jax.precompile import counts, estimate, steps, topology


def counted(**changes):
  fields = dict(
    matmul_flops=4.59e14,
    kernel_flops=0.459e14,
    kernels={'splash_mha_fwd': 2.0},
    unknown_kernels=(),
    cycles=1.75e9 * 1.4,
    collectives={
      'all-gather': counts.Collective(1, 2, 54e9),
      'all-reduce': counts.Collective(1, 1, 54e9),
      'collective-permute': counts.Collective(1, 1, 9e9),
    },
    gathers_as_reduces=0.0,
    open_loops=(),
  )
  return counts.Counts(**fields | changes)


STEP = steps.Step(
  function=None,
  arguments=(),
  parameters=1,
  trained_parameters=1,
  model_flops=4 * 4.59e14,
  model_flops_masked=0,
)


def test_a_tpu_has_cycles_and_kernels_at_peak():
  found = estimate.speed(counted(), STEP, topology.parse('v5p:2x2x1'))
  assert found['floor_seconds'] == pytest.approx(1.4 + 0.1)
  # 540 GB/s over all links: once to gather, twice to reduce; 90 over one
  assert found['collective_seconds'] == pytest.approx(0.1 + 0.2 + 0.1)
  assert found['mfu_upper'] == pytest.approx(1 / 1.5)
  assert found['mfu_lower'] == pytest.approx(1 / 1.9)
  assert found['flops_over_model_flops'] == pytest.approx(1.1)


def test_a_gpu_has_neither():
  target = topology.parse('h100:1x4')
  found = estimate.speed(counted(), STEP, target)
  assert found['cycles'] is None
  assert found['floor_seconds'] == pytest.approx(1.1 * 4.59e14 / target.chip.peak_flops)


@pytest.mark.parametrize(
  'message, asked',
  [
    ('Ran out of memory in memory space hbm. Used 97.46G of 95.73G hbm. Exceeded ...', 97.46),
    ('memory required for HLO temporaries (964.50G) exceeds available HBM (95.74G).', 964.5),
    ('INTERNAL: something else', None),
  ],
)
def test_what_the_compiler_asked_for(message, asked):
  found = estimate.asked_bytes(message)
  assert found == (None if asked is None else int(asked * 2**30))

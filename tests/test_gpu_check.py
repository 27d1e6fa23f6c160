"""The script for GPU machines, at the size that a CPU takes."""

import json
import os
from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow(minutes=3)
def test_all_parts_run_on_a_cpu(tmp_path):
  out = tmp_path / 'record.json'
  command = [sys.executable, 'experiments/gpu/check.py', '--size=toy', f'--out={out}']
  environ = os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}
  result = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  record = json.loads(out.read_text())
  assert out.stat().st_size < 20_000 and record['device'] == 'cpu'
  kernels, fit, step, decoding = (record[n] for n in ('kernels', 'fit', 'step', 'decoding'))
  assert [row['kernel'] for row in kernels['rows']] == ['dot_product'] * 2
  assert 1e-4 < kernels['worst_error'] < 0.02 and 'Hopper' in kernels['cudnn']
  nats = fit['heldout_nats']
  assert fit['is_right'] and nats['own'] < 4.5 < 5.3 < min(nats['off'], nats['random'])
  assert step['arm'] == 'retro_fit' and step['mfu'] is None  # of a CPU no peak is known
  assert step['tokens_per_sec'] == pytest.approx(2 * step['seq_len'] / step['seconds'])
  (row,) = decoding['rows']
  assert row['tokens_per_sec'] > 0
  assert row.get('transformers_tokens_per_sec', 0) > 0 or 'not run' in row['transformers']

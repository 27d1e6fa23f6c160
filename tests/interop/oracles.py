"""Numbers of megatron-core itself: the cut-down case in tests/golden, and whole cases if there."""

import json
import os
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / 'tests' / 'golden' / 'megatron_core_gelu.npz'


def find_cases():
  """Whole cases: from the folder in INSTRUCTRETRO_ORACLES, or shared/oracles beside the tree."""
  folder = Path(os.environ.get('INSTRUCTRETRO_ORACLES', ROOT.parent / 'shared' / 'oracles'))
  return sorted(folder.glob('retro_*.npz'))


def from_planes(planes, *shape):
  """float32 values from their byte planes (which compress)."""
  return np.ascontiguousarray(planes.T).view(np.float32).reshape(shape)


def read_golden():
  """Case, state dict, gradients of all vectors, inputs and outputs of the golden file.

  The file was cut from the case `a_learned_gelu`, made by megatron-core 0.15.3 on a CPU: outputs
  and gradients are its float64 run, rounded. It never needs to be made again.
  """
  z = np.load(GOLDEN)
  state, start = {}, 0
  flat = from_planes(z['params'], -1)
  for name, shape in json.loads(str(z['names'])):
    size = int(np.prod(shape))
    state[name] = flat[start : start + size].reshape(shape)
    start += size
  grads, start = {}, 0
  flat = from_planes(z['grads'], -1)
  for name, x in state.items():
    if x.ndim == 1:
      grads[name] = flat[start : start + x.size]
      start += x.size
  return json.loads(str(z['config_json']))['case'], state, grads, z


def call_inputs(z):
  """Arguments of the model for one case."""
  tokens, neighbours = z['input/tokens'], z['input/neighbor_tokens']
  given = {'positions_BL': z['input/position_ids']}
  allowed = ~z['input/attention_mask'][:, 0]
  segments = None
  if not np.array_equal(allowed, np.tril(np.ones_like(allowed))):
    # documents: the position restarts where one begins
    segments = np.cumsum(z['input/position_ids'] == 0, axis=1)
    same = np.tril(segments[:, :, None] == segments[:, None, :])
    np.testing.assert_array_equal(np.broadcast_to(allowed, same.shape), same)
  if 'input/context_mask' in z.files:
    mask = ~z['input/context_mask'][:, 0]
    rows = neighbours.shape[:3] if len(mask) > 1 else (1, 1, 1)
    given['encoder_mask_BNKRR'] = mask.reshape(*rows, *mask.shape[1:])
  return tokens, segments, neighbours, given

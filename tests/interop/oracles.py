"""Numbers of megatron-core itself, in tests/golden; README.md there says how they were made."""

import json
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).resolve().parents[1] / 'golden'
ROPE_CASES = ('rope', 'ragged', 'legacy')
EDGES = (1, 5, 8, 9, 41)  # tokens of `ragged` besides its own 45


def from_planes(planes, *shape):
  """float32 values from their byte planes (which compress)."""
  return np.ascontiguousarray(planes.T).view(np.float32).reshape(shape)


def cut(flat, named_shapes):
  """Arrays by name, one after the other in a flat one."""
  found, start = {}, 0
  for name, shape in named_shapes:
    size = int(np.prod(shape))
    found[name] = flat[start : start + size].reshape(shape)
    start += size
  assert start == flat.size
  return found


def vectors(named_shapes):
  """Names and shapes of vectors alone, whose gradients are kept."""
  return [(name, shape) for name, shape in named_shapes if len(shape) == 1]


def read_golden():
  """Case, state dict, gradients of all vectors, and arrays: learned positions, GELU, biases."""
  z = np.load(GOLDEN / 'megatron_core_gelu.npz')
  names = json.loads(str(z['names']))
  state = cut(from_planes(z['params'], -1), names)
  grads = cut(from_planes(z['grads'], -1), vectors(names))
  return json.loads(str(z['config_json']))['case'], state, grads, z


def read_rope(name):
  """The same of one of ROPE_CASES: rotary positions, SwiGLU, no biases; outputs in float64.

  No gradients (None) of `ragged`.
  """
  z = np.load(GOLDEN / 'megatron_core_rope.npz')
  names = json.loads(str(z['names']))
  state = cut(from_planes(z['params'], -1), names)
  of_case = {key.partition('/')[2]: z[key] for key in z.files if key.startswith(f'{name}/')}
  grads = cut(of_case['grads'], vectors(names)) if 'grads' in of_case else None
  return json.loads(str(of_case['case'])), state, grads, of_case

"""What a device can do at most: the denominator of model-FLOP utilisation."""

from __future__ import annotations

# FLOP/s of a chip, bfloat16 in and float32 out, without sparsity. TPUs:
# docs.cloud.google.com/tpu/docs/{v4,v5p,v5e,v6e}; GPUs: NVIDIA's data sheets of the SXM forms.
PEAK_FLOPS = {
  'v4': 275e12,
  'v5p': 459e12,
  'v5e': 197e12,
  'v6e': 918e12,
  'a100': 312e12,
  'h100': 989e12,
  'h200': 989e12,
}

# `device_kind` of JAX where one device is one chip
_CHIPS = {
  'TPU v4': 'v4',
  'TPU v5': 'v5p',
  'TPU v5p': 'v5p',
  'TPU v5 lite': 'v5e',
  'TPU v5e': 'v5e',
  'TPU v6 lite': 'v6e',
  'TPU v6e': 'v6e',
  'NVIDIA A100-SXM4-40GB': 'a100',
  'NVIDIA A100-SXM4-80GB': 'a100',
  'NVIDIA H100 80GB HBM3': 'h100',
  'NVIDIA H200': 'h200',
}


def peak_flops(device_kind: str) -> float | None:
  """FLOP/s of a device of that kind; None if it is not known."""
  return PEAK_FLOPS[_CHIPS[device_kind]] if device_kind in _CHIPS else None

"""Rotary positions (Su et al. 2021)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from instructretro_jax.array_types import Array
from instructretro_jax.model.rotary_scaling import RotaryScaling


def apply_rotary(
  x_BTHA: Array,
  positions: Array,
  *,
  fraction: float = 1.0,
  base: float = 10_000.0,
  interleaved: bool = False,
  scaling: RotaryScaling | None = None,
) -> Array:
  """Rotary position embedding on the first `fraction` of the head width.

  Channel i is paired with i + half (or 2i with 2i + 1 if interleaved); angles are in float32.
  Positions are [T], or [B, T] where rows differ.
  """
  rotary_width = int(x_BTHA.shape[-1] * fraction)
  half = rotary_width // 2
  dtype = jnp.promote_types(x_BTHA.dtype, jnp.float32)
  frequency = base ** (-jnp.arange(half, dtype=dtype) / half)
  if scaling is not None:
    frequency *= jnp.asarray(scaling.multipliers(base, half), dtype)
  positions_BT = positions.reshape(-1, x_BTHA.shape[1]).astype(dtype)  # or [1, T]
  angle = positions_BT[:, :, None, None] * frequency[None, None, None, :]
  # the barrier keeps them from being recomputed for each head
  cos, sin = jax.lax.optimization_barrier((jnp.cos(angle), jnp.sin(angle)))
  if scaling is not None and scaling.magnitude != 1:
    cos, sin = scaling.magnitude * cos, scaling.magnitude * sin
  cos, sin = cos.astype(x_BTHA.dtype), sin.astype(x_BTHA.dtype)
  x, rest = x_BTHA[..., :rotary_width], x_BTHA[..., rotary_width:]
  if interleaved:
    a, b = x[..., 0::2], x[..., 1::2]
    rotated = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)
  else:
    a, b = x[..., :half], x[..., half:]
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return jnp.concatenate([rotated, rest], axis=-1)

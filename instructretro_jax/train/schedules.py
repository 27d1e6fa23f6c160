"""Learning rates by step: warm-up, then cosine decay, or a constant rate that falls at the end."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import optax

from instructretro_jax.model.config import require_in

COSINE, WSD = 'cosine', 'wsd'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """The learning rate of each step, counted from 0.

  With t = step + 1, W steps of warm-up and the decay ending with step D, the rate is

      peak * t / W                                      where t <= W
      final + (peak - final) * (1 + cos(pi * p)) / 2    'cosine' (Loshchilov & Hutter 2017)
      final + (peak - final) * (1 - p)                  'wsd'

  p rises from 0 to 1 between step W, or D - cooldown for 'wsd' (warmup-stable-decay, Hu et al.
  2024), and step D. So the first step has a rate above 0, one has the peak, and the last the final
  rate. A single step has the final rate, or the peak if that is 0.

  Attributes:
    peak: highest rate.
    final_fraction: of the peak, from the last step of the decay on; 1 keeps the rate constant.
    warmup_fraction: of the steps, over which the rate rises; 0 begins at the peak.
    decay_fraction: of the steps, warm-up included, at which the decay ends.
    kind: 'cosine' or 'wsd'.
    cooldown_fraction: of the steps, over which 'wsd' falls.
  """

  peak: float
  final_fraction: float
  warmup_fraction: float
  decay_fraction: float
  kind: str
  cooldown_fraction: float

  def __post_init__(self):
    require_in('lr_schedule', self.kind, (COSINE, WSD))
    rising = self.warmup_fraction + (self.cooldown_fraction if self.kind == WSD else 0)
    if rising > self.decay_fraction + 1e-9:
      within = 'warmup_fraction' + (' and cooldown_fraction' if self.kind == WSD else '')
      raise ValueError(
        f'{within} together are {rising}, above decay_fraction={self.decay_fraction}, which counts '
        'from the first step'
      )

  @property
  def is_open_ended(self) -> bool:
    """Whether more steps leave the rates of earlier ones as they are, but for a cool-down."""
    return self.kind == WSD or self.final_fraction == 1

  def over(self, num_steps: int, warmup_of: int | None = None) -> optax.Schedule:
    """The rates of that many steps.

    Args:
      warmup_of: the number of steps whose fraction the warm-up is, where an arm that had begun with
        it is trained longer.
    """
    if num_steps == 1:
      return optax.constant_schedule(self.peak * (self.final_fraction or 1))
    end = max(2, round(self.decay_fraction * num_steps))
    warmup = round(self.warmup_fraction * (warmup_of or num_steps))
    warmup = min(max(1, warmup), end - 1)
    cooldown = max(1, round(self.cooldown_fraction * num_steps))
    stable = max(warmup, end - cooldown) if self.kind == WSD else warmup
    final = self.final_fraction * self.peak

    def rate(step):
      t = step + 1
      share = jnp.clip((t - stable) / (end - stable), 0, 1)
      left = 1 - share if self.kind == WSD else (1 + jnp.cos(jnp.pi * share)) / 2
      return jnp.where(t < warmup, self.peak * t / warmup, final + (self.peak - final) * left)

    return rate

"""Which checkpoints of an arm are kept."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from orbax.checkpoint import checkpoint_managers

from instructretro_jax.pipeline.fields import MAY_BE_0

LOSS = 'heldout'  # the metric of a checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keep:
  """The newest checkpoints of an arm, and more if asked for.

  Attributes:
    last: the newest so many.
    every: also each that is of a multiple of so many steps.
    best: also so many of those with a held-out loss (train/heldout.py), the lowest.
  """

  last: int = 2
  every: int | None = None
  best: int = dataclasses.field(default=0, metadata=MAY_BE_0)

  only_how: ClassVar[frozenset[str]] = frozenset({'last', 'every', 'best'})

  def policy(self) -> checkpoint_managers.PreservationPolicy:
    """As Orbax takes it."""
    best = checkpoint_managers.BestN(
      get_metric_fn=lambda metrics: metrics[LOSS],
      reverse=True,
      n=self.best,
      keep_checkpoints_without_metrics=False,
    )
    every = [checkpoint_managers.EveryNSteps(self.every)] if self.every else []
    policies = [checkpoint_managers.LatestN(self.last), best, *every]
    return checkpoint_managers.AnyPreservationPolicy(policies)

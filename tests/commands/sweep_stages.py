"""Stages of which a sweep can be made without training."""

import dataclasses

from instructretro_jax.pipeline.hosts import Preempted
from instructretro_jax.pipeline.manifest import StageError
from tests.pipeline.writing import Write


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fragile(Write):
  """Writes its text, unless a file beside the roots says that it fails."""

  seed: int = 0

  def build(self, root, folder):
    if (root.parent / f'fails_{self.text}').exists():
      raise StageError(f'{self.text} fails')
    if (root.parent / f'preempted_{self.text}').exists():
      raise Preempted('the machine is taken away')
    return super().build(root, folder)

"""The stage that writes an arm for other tools."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from instructretro_jax.interop import stages
from instructretro_jax.model.config import require_in
from instructretro_jax.pipeline import paths
from instructretro_jax.pipeline.atomic import is_whole
from instructretro_jax.pipeline.stage import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(Stage):
  """Writes an arm for other tools, with its tokenizer, in a folder for each format.

  Attributes:
    arm: a training stage.
    formats: 'huggingface', the decoder alone, and 'megatron', the whole model.
  """

  name: str = 'export'
  arm: str
  formats: tuple[str, ...] = ('huggingface',)

  def __post_init__(self):
    for kind in self.formats:
      require_in('formats', kind, stages.FORMATS)

  def reads(self) -> tuple[str, ...]:
    """The stages whose folders `build` reads."""
    return (self.arm,)

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    """Writes the formats that are not there yet, each whole.

    Raises StageError if one of them cannot express the model.
    """
    for kind in self.formats:
      if not is_whole(folder / kind):
        paths.remove(folder / kind)  # what a kill has left in a store
        stages.export(root / self.arm, folder / kind, kind)
    return {'formats': list(self.formats)}

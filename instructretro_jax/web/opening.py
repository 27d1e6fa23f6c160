"""The checkpoint of the page, whatever it can do, and what the page says of it."""

from __future__ import annotations

from pathlib import Path

import jax

from instructretro_jax.inference.sampler import Sampler
from instructretro_jax.inference.session import open_sampler
from instructretro_jax.pipeline import paths
from instructretro_jax.train.checkpoint import Checkpoint


def open_checkpoint(
  folder: Path, index: Path | None, tensor: int = 1
) -> tuple[Sampler, tuple[tuple[str, str], ...]]:
  """The sampler, with its encoder if it has one, and facts by name.

  Raises StageError as `open_sampler` does.
  """
  has_encoder = Checkpoint(folder).has_encoder()
  sampler, _ = open_sampler(folder, index, float(has_encoder), tensor)
  count = sum(x.size for x in jax.tree.leaves(sampler.params))
  facts = [('checkpoint', paths.resolved(folder).name), ('parameters', f'{count:,}')]
  facts.append(('encoder', 'yes' if has_encoder else 'none'))
  facts.append(('index', 'none' if index is None else paths.resolved(index).name))
  return sampler, tuple(facts)

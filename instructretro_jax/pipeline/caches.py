"""What is kept between runs, below one folder of the user: packages, and compiled programs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
  """$INSTRUCTRETRO_CACHE, or ~/.cache/instructretro_jax."""
  default = Path('~/.cache/instructretro_jax')
  return Path(os.environ.get('INSTRUCTRETRO_CACHE', default)).expanduser()


def keep_compiled() -> None:
  """Programs that JAX compiles are kept for later runs, unless a place for them is set already.

  Call it before JAX is imported: it is told by the environment, which other processes inherit.
  """
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(cache_folder() / 'compiled'))

"""What a Retro-fit of each size costs, by arithmetic: the table of README.md.

python experiments/own_model/cost.py
"""

from __future__ import annotations

import math

import jax

from instructretro_jax.model.config import RetroConfig
from instructretro_jax.model.flops import train_step_flops
from instructretro_jax.pipeline import gin_adapter
from instructretro_jax.precompile.topology import CHIPS, GIB
from instructretro_jax.train.state import init_params

MODELS = (
  'smollm2_135m', 'smollm2_360m', 'pythia_410m', 'qwen3_0.6b', 'llama_3.2_1b', 'pythia_1.4b',
  'olmo_2_1b', 'smollm2_1.7b', 'qwen3_1.7b', 'gemma_2b', 'llama_3.2_3b',
)  # fmt: skip
SLICES = {'v5e': (1, 4, 8, 16), 'v5p': (4, 8, 16), 'h100': (1, 2, 4, 8)}  # chips
SEQ_LEN = 2048
TOKENS = 10e6  # of each fit
MFU = 0.4
STATE_BYTES = 16  # a parameter: itself, its gradient and two moments, float32
MOST = 0.75  # of the memory of a chip that the state may take; activations need the rest


def row(name: str) -> str:
  """A line of the table."""
  config, _ = gin_adapter.configure(RetroConfig, [f'gin/models/{name}.gin'])
  shapes = jax.eval_shape(lambda: init_params(config, 0, True))
  num_params = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
  steps = [
    train_step_flops(config, batch_size=1, seq_len=SEQ_LEN, is_open=is_open).total
    for is_open in (False, True)
  ]
  cells = [f'`{name}`', f'{num_params / 1e9:.2f}', f'{num_params * STATE_BYTES / GIB:.0f} GiB']
  cells.append(f'{steps[1] / steps[0]:.1f}')
  for kind, sizes in SLICES.items():
    chip = CHIPS[kind]
    needed = num_params * STATE_BYTES / (MOST * chip.hbm_bytes)
    chips = min(size for size in sizes if size >= needed)
    seconds = sum(steps) * TOKENS / SEQ_LEN / (MFU * chip.peak_flops * chips)
    cells.append(f'{chips}: {math.ceil(seconds / 60)} min')
  return f'| {" | ".join(cells)} |'


def table() -> str:
  """All of it."""
  names = ['model', 'parameters, 10⁹', 'state', 'FLOPs, Retro : GPT', *SLICES]
  return '\n'.join([f'| {" | ".join(names)} |', '| --- ' * len(names) + '|', *map(row, MODELS)])


if __name__ == '__main__':
  print(table())

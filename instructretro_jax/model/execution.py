"""How a model is computed, apart from what it is: only rounding of its logits depends on it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from instructretro_jax.model.config import require_in
from instructretro_jax.model.kernels import ATTENTIONS
from instructretro_jax.model.remat import REMATS

DTYPES = ('float32', 'bfloat16', 'float64')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
  """Settings that two runs of one model may differ in.

  Attributes:
    dtype: of activations; parameters are float32.
    attention: kernel of causal self-attention (model/kernels.py); 'splash' on TPUs, 'cudnn' on
      GPUs.
    remat: what the backward pass keeps of a layer, the rest is recomputed (model/remat.py).
    scan_layers: compile repeating groups of layers once (model/layer_groups.py).
  """

  only_how: ClassVar[frozenset[str]] = frozenset({'attention', 'remat', 'scan_layers'})

  dtype: str = 'float32'
  attention: str = 'dot_product'
  remat: str = 'none'
  scan_layers: bool = False

  def __post_init__(self):
    require_in('dtype', self.dtype, DTYPES)
    require_in('attention', self.attention, ATTENTIONS)
    require_in('remat', self.remat, REMATS)

  def for_use(self) -> Execution:
    """As weights are evaluated and decoded with: layers one by one, and the plain kernel.

    The kernel of training may not take sequences that are short, or not run on this machine.
    """
    return Execution(dtype=self.dtype)

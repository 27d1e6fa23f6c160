"""What the backward pass keeps, and what it computes again."""

from __future__ import annotations

from flax import linen as nn
import jax

# What the backward pass keeps of a layer besides its input; the rest is computed again. Names are
# those of linear maps, and 'attended', what attention reads (model/attention.py).
_POLICIES = {
  'full': None,
  'except_wide': jax.checkpoint_policies.save_only_these_names(
    'query', 'key', 'value', 'attended', 'output', 'down'
  ),
  'dots': jax.checkpoint_policies.save_only_these_names(
    'query', 'key', 'value', 'attended', 'output', 'down', 'gate', 'up'
  ),
}


def rematerialised(module: type[nn.Module], remat: str, methods: tuple[str, ...] = ('__call__',)):
  """A module class whose methods keep what the policy named `remat` says, and 'none' everything."""
  if remat == 'none':
    return module
  return nn.remat(module, policy=_POLICIES[remat], methods=methods)

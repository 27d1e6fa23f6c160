"""What the backward pass keeps, and what it computes again."""

from __future__ import annotations

from flax import linen as nn
import jax

_BLOCKS = ('stream', 'attended')
_NARROW = ('query', 'key', 'value', 'attended', 'output', 'down')

# What the backward pass keeps of a layer besides its input; the rest is computed again. Names are
# those of linear maps, of 'query' and 'key' also once they are turned, which is what is kept then;
# 'attended', what attention reads; 'stream', the sum behind each attention.
_POLICIES = {
  'save_nothing': None,
  # inputs of blocks: no block's last product is made again, and no attention kernel runs again
  'save_block_inputs': jax.checkpoint_policies.save_only_these_names(*_BLOCKS),
  'save_narrow_products': jax.checkpoint_policies.save_only_these_names(*_NARROW),
  'save_all_products': jax.checkpoint_policies.save_only_these_names(*_NARROW, 'gate', 'up'),
}


def rematerialised(module: type[nn.Module], remat: str, methods: tuple[str, ...] = ('__call__',)):
  """A module class whose methods keep what the policy named `remat` says, and 'none' everything."""
  if remat == 'none':
    return module
  return nn.remat(module, policy=_POLICIES[remat], methods=methods)

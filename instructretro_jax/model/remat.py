"""What the backward pass saves of a layer, and what it recomputes."""

from __future__ import annotations

from flax import linen as nn
import jax

_BLOCKS = ('stream', 'attended')
_NARROW = ('query', 'key', 'value', 'attended', 'output', 'down')

# What the backward pass saves of a layer besides its input; the rest is recomputed. Names are
# those of linear maps ('query' and 'key' after rotary positions, where there are any); 'attended',
# what attention reads; 'stream', the sum behind each attention.
_POLICIES = {
  'save_nothing': None,
  # inputs of blocks: no block's last product is made again, and no attention kernel runs again
  'save_block_inputs': jax.checkpoint_policies.save_only_these_names(*_BLOCKS),
  'save_narrow_products': jax.checkpoint_policies.save_only_these_names(*_NARROW),
  'save_all_products': jax.checkpoint_policies.save_only_these_names(*_NARROW, 'gate', 'up'),
}


REMATS = ('none', *_POLICIES)


def rematerialised(module: type[nn.Module], remat: str, methods: tuple[str, ...] = ('__call__',)):
  """A module class whose methods save what `remat` names; 'none' recomputes nothing."""
  if remat == 'none':
    return module
  return nn.remat(module, policy=_POLICIES[remat], methods=methods)

"""Which parameters are the retrieval part of a model, and which the plain decoder's.

A path is that of a parameter: 'encoder/layer_0/mlp/up/kernel'. What only a Retro model has is its
encoder (with the encoder's own embeddings, if any) and the cross-attention of some decoder layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
import re

from flax import traverse_util

from instructretro_jax.array_types import Params

RETRIEVAL = 'retrieval'

# names that stand for a pattern, searched in a path; a path is in the first of PARTS that fits
_ENCODER, _CROSS_ATTENTION = r'^encoder(_embedding)?/', r'/cross_attention/'
PARTS = {
  'encoder': _ENCODER,
  'cross_attention': _CROSS_ATTENTION,
  'embeddings': r'^embedding/|^head$',
  'norms': r'norm/',
  'self_attention': r'/self_attention/',
  'mlp': r'/mlp/',
}
GROUPS = PARTS | {RETRIEVAL: f'{_ENCODER}|{_CROSS_ATTENTION}'}
_IS_RETRIEVAL = re.compile(GROUPS[RETRIEVAL])


def fits(pattern: str, path: str) -> bool:
  """Whether a path is in a group: a name of `GROUPS`, or a regular expression."""
  return re.search(GROUPS.get(pattern, pattern), path) is not None


def part_of(path: str) -> str:
  """The name of the part of the model that a parameter belongs to, one of `PARTS`."""
  return next(name for name, pattern in PARTS.items() if re.search(pattern, path))


def is_retrieval(path: str) -> bool:
  """Whether a parameter belongs to the encoder or a cross-attention."""
  return _IS_RETRIEVAL.search(path) is not None


def has_retrieval(params: Params | Iterable[str]) -> bool:
  """Whether parameters, nested or given as their paths, include a retrieval part."""
  paths = traverse_util.flatten_dict(params, sep='/') if isinstance(params, Mapping) else params
  return any(map(is_retrieval, paths))


def without_retrieval(params: Params) -> Params:
  """The parameters of the plain decoder: all that a gate of 0 reads."""
  return _select(params, lambda path: not is_retrieval(path))


def retrieval_only(params: Params) -> Params:
  """The parameters of encoder and cross-attention."""
  return _select(params, is_retrieval)


def _select(params: Params, is_kept: Callable[[str], bool]) -> Params:
  flat = traverse_util.flatten_dict(params, sep='/')
  return traverse_util.unflatten_dict({p: x for p, x in flat.items() if is_kept(p)}, sep='/')

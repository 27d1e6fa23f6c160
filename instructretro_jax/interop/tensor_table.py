"""Tensors of Hugging Face models: which is which of our parameters, and the way there and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math
import re

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.model.retro import Retro
from instructretro_jax.pipeline import foreign
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.train.lazy_params import LazyArray, LazyParams

Shapes = Mapping[str, tuple[int, ...]]  # of our parameters, by path

_PREFIX = re.compile(r'^(transformer|model)\.')
# of torch.compile, of data-parallel training and of FSDP
_WRAPPERS = re.compile(r'(?:^|(?<=\.))(_orig_mod|module|_fsdp_wrapped_module)\.')
_BUFFERS = re.compile(r'(^|\.)(attn\.(bias|masked_bias)|rotary_emb\.inv_freq)$')  # no weights


@dataclasses.dataclass(frozen=True)
class Row:
  """One tensor of theirs and the parameters it holds, side by side along the output axis."""

  theirs: str  # without the prefix 'transformer.' or 'model.'
  ours: tuple[str, ...]
  is_transposed: bool = False  # torch.nn.Linear keeps [out, in]


_LLAMA_LAYER = (
  ('input_layernorm', 'self_attention/norm'),
  ('self_attn.q_proj', 'self_attention/attention/query'),
  ('self_attn.k_proj', 'self_attention/attention/key'),
  ('self_attn.v_proj', 'self_attention/attention/value'),
  ('self_attn.q_norm', 'self_attention/attention/query_norm'),
  ('self_attn.k_norm', 'self_attention/attention/key_norm'),
  ('self_attn.o_proj', 'self_attention/attention/output'),
  ('post_attention_layernorm', 'mlp/norm'),
  ('mlp.gate_proj', 'mlp/gate'),
  ('mlp.up_proj', 'mlp/up'),
  ('mlp.down_proj', 'mlp/down'),
)
_GPT2_LAYER = (
  ('ln_1', 'self_attention/norm'),
  ('attn.c_attn', 'self_attention/attention/{query,key,value}'),
  ('attn.c_proj', 'self_attention/attention/output'),
  ('ln_2', 'mlp/norm'),
  ('mlp.c_fc', 'mlp/up'),
  ('mlp.c_proj', 'mlp/down'),
)


def rows(family: str, config: DecoderConfig, shapes: Shapes) -> tuple[Row, ...]:
  """The table of one decoder: 'gpt2', or any other name for the tensors of Llama."""
  if family == 'gpt2':
    found = [Row('wte.weight', ('embedding/table',)), Row('wpe.weight', ('embedding/positions',))]
    layer, layer_name, final, is_linear = _GPT2_LAYER, 'h.{}.', 'ln_f', False
  else:
    found = [Row('embed_tokens.weight', ('embedding/table',))]
    layer, layer_name, final, is_linear = _LLAMA_LAYER, 'layers.{}.', 'norm', True
  for n in range(config.num_layers):
    for theirs, ours in layer:
      found += _module(layer_name.format(n) + theirs, f'decoder_{n}/{ours}', is_linear, shapes)
  found += _module(final, 'final_norm', is_linear, shapes)
  if not config.tie_embeddings:
    found.append(Row('lm_head.weight', ('head',), is_transposed=True))
  return tuple(found)


def _module(theirs: str, ours: str, is_linear: bool, shapes: Shapes) -> list[Row]:
  """Rows of one module: those of its parameters that the model has."""
  head, brace, names = ours.partition('{')
  paths = [head + name for name in names.rstrip('}').split(',')] if brace else [ours]
  found = []
  for leaf, tensor in (('kernel', 'weight'), ('scale', 'weight'), ('bias', 'bias')):
    parts = tuple(f'{path}/{leaf}' for path in paths)
    if parts[0] in shapes:
      found.append(Row(f'{theirs}.{tensor}', parts, is_linear and leaf == 'kernel'))
  return found


def decoder_shapes(config: RetroConfig) -> dict[str, tuple[int, ...]]:
  """Shapes of the decoder's parameters by path, without the retrieval part."""
  tokens = jnp.zeros((1, 1), jnp.int32)
  init = lambda: nn.unbox(Retro(config).init(jax.random.key(0), tokens, gate=0)['params'])
  flat = traverse_util.flatten_dict(jax.eval_shape(init), sep='/')
  return {path: x.shape for path, x in flat.items()}


def _flat_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """A parameter as a matrix [in, out] or a vector."""
  if len(shape) == 1 or path.endswith('/bias'):
    return (math.prod(shape),)
  num_in = 2 if path.endswith('attention/output/kernel') else 1
  return math.prod(shape[:num_in]), math.prod(shape[num_in:])


def their_shape(row: Row, shapes: Shapes) -> tuple[int, ...]:
  """What the tensor of a row must have."""
  parts = [_flat_shape(path, shapes[path]) for path in row.ours]
  whole = (*parts[0][:-1], sum(part[-1] for part in parts))
  return whole[::-1] if row.is_transposed else whole


def plain_name(name: str) -> str:
  """A tensor's name without those of the classes around it and of the one that saved it."""
  return _PREFIX.sub('', _WRAPPERS.sub('', name))


def problems(table: Sequence[Row], tensors: LazyParams, shapes: Shapes) -> list[str]:
  """Missing, unknown and wrongly shaped tensors, in words. `tensors` have plain names."""
  found = []
  for row in table:
    expected = their_shape(row, shapes)
    if row.theirs not in tensors:
      found.append(f'{row.theirs} {list(expected)} is missing')
    elif tensors[row.theirs].shape != expected:
      there = list(tensors[row.theirs].shape)
      found.append(f'{row.theirs} has the shape {there}, expected {list(expected)}')
  known = {row.theirs for row in table}
  found += [f'{n} is unknown' for n in sorted(tensors) if n not in known and not _BUFFERS.search(n)]
  return found


def is_whole(family: str, config: RetroConfig, tensors: LazyParams) -> bool:
  """Whether no tensor of a model is missing. `tensors` have plain names."""
  return all(row.theirs in tensors for row in rows(family, config.decoder, decoder_shapes(config)))


def read(
  source: object, family: str, config: RetroConfig, tensors: LazyParams
) -> dict[str, LazyArray]:
  """Parameters of the decoder by path, float32, each read from its tensor when asked for.

  Args:
    source: named in an error.
    tensors: by plain name.

  Raises StageError that lists the first missing, unknown or wrongly shaped tensors.
  """
  shapes = decoder_shapes(config)
  table = rows(family, config.decoder, shapes)
  wrong, tensors = [], dict(tensors)
  if config.decoder.tie_embeddings and 'lm_head.weight' in tensors:  # some files write it twice
    head, embedding = tensors.pop('lm_head.weight'), tensors.get(table[0].theirs)
    if embedding is not None and not np.array_equal(head.read(), embedding.read()):
      wrong.append('lm_head.weight is not the embedding table, though the two are said to be tied')
  wrong += problems(table, tensors, shapes)
  if wrong:
    raise StageError(f'{source} does not fit {family}: {foreign.shorten(wrong)}')
  found = {}
  for row in table:
    start = 0
    for path in row.ours:
      size = _flat_shape(path, shapes[path])[-1]
      part = slice(start, start + size)
      found[path] = _part(tensors[row.theirs], row.is_transposed, part, shapes[path])
      start += size
  return found


def _part(tensor: LazyArray, is_transposed: bool, part: slice, shape: tuple[int, ...]) -> LazyArray:
  def read() -> np.ndarray:
    whole = tensor.read()
    whole = whole.T if is_transposed else whole
    return np.ascontiguousarray(whole[..., part], dtype=np.float32).reshape(shape)

  return LazyArray(shape, np.dtype(np.float32), read)


def to_theirs(row: Row, flat: Mapping[str, np.ndarray]) -> np.ndarray:
  """The tensor of a row from our parameters by path, float32."""
  parts = [np.asarray(flat[p], np.float32).reshape(_flat_shape(p, flat[p].shape)) for p in row.ours]
  whole = np.concatenate(parts, axis=-1)
  return np.ascontiguousarray(whole.T if row.is_transposed else whole)

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

_PREFIX = re.compile(r'^(transformer|model|gpt_neox)\.')
# of torch.compile, of data-parallel training and of FSDP
_WRAPPERS = re.compile(r'(?:^|(?<=\.))(_orig_mod|module|_fsdp_wrapped_module)\.')
# no weights
_BUFFERS = re.compile(r'(^|\.)((attn|attention)\.(bias|masked_bias)|rotary_emb\.inv_freq)$')


@dataclasses.dataclass(frozen=True)
class Row:
  """One tensor of theirs and the parameters it holds, side by side along the output axis."""

  theirs: str  # without the prefix of its layout
  ours: tuple[str, ...]
  is_transposed: bool = False  # torch.nn.Linear keeps [out, in]
  num_groups: int = 1  # each with its share of all parameters side by side


@dataclasses.dataclass(frozen=True)
class Layout:
  """Names of the tensors of a family, without their prefix."""

  prefix: str
  embedding: str
  layer: str
  modules: tuple[tuple[str, str], ...]  # of a layer: theirs, and ours with {side,by,side}
  final_norm: str
  head: str = 'lm_head.weight'  # has no prefix
  is_linear: bool = True  # kernels as torch.nn.Linear has them
  is_grouped: bool = False  # what is side by side is so inside of each head


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
_OLMO2_LAYER = (
  *(row for row in _LLAMA_LAYER if not row[0].endswith('layernorm')),
  ('post_attention_layernorm', 'self_attention/output_norm'),
  ('post_feedforward_layernorm', 'mlp/output_norm'),
)
_PHI3_LAYER = (
  ('input_layernorm', 'self_attention/norm'),
  ('self_attn.qkv_proj', 'self_attention/attention/{query,key,value}'),
  ('self_attn.o_proj', 'self_attention/attention/output'),
  ('post_attention_layernorm', 'mlp/norm'),
  ('mlp.gate_up_proj', 'mlp/{gate,up}'),
  ('mlp.down_proj', 'mlp/down'),
)
_GPT_NEOX_LAYER = (
  ('input_layernorm', 'self_attention/norm'),
  ('attention.query_key_value', 'self_attention/attention/{query,key,value}'),
  ('attention.dense', 'self_attention/attention/output'),
  ('post_attention_layernorm', 'mlp/norm'),
  ('mlp.dense_h_to_4h', 'mlp/up'),
  ('mlp.dense_4h_to_h', 'mlp/down'),
)
_GPT2_LAYER = (
  ('ln_1', 'self_attention/norm'),
  ('attn.c_attn', 'self_attention/attention/{query,key,value}'),
  ('attn.c_proj', 'self_attention/attention/output'),
  ('ln_2', 'mlp/norm'),
  ('mlp.c_fc', 'mlp/up'),
  ('mlp.c_proj', 'mlp/down'),
)
_LLAMA = Layout('model.', 'embed_tokens.weight', 'layers.{}.', _LLAMA_LAYER, 'norm')
_LAYOUTS = {
  'gpt2': Layout('transformer.', 'wte.weight', 'h.{}.', _GPT2_LAYER, 'ln_f', is_linear=False),
  'gpt_neox': Layout(
    'gpt_neox.',
    'embed_in.weight',
    'layers.{}.',
    _GPT_NEOX_LAYER,
    'final_layer_norm',
    head='embed_out.weight',
    is_grouped=True,
  ),
  'olmo2': dataclasses.replace(_LLAMA, modules=_OLMO2_LAYER),
  'phi3': dataclasses.replace(_LLAMA, modules=_PHI3_LAYER),
}


def layout(family: str) -> Layout:
  """That of a family; Llama's if it has none of its own."""
  return _LAYOUTS.get(family, _LLAMA)


def rows(family: str, config: DecoderConfig, shapes: Shapes) -> tuple[Row, ...]:
  """The table of one decoder."""
  names = layout(family)
  found = [Row(names.embedding, ('embedding/table',))]
  if config.positions == 'learned':
    found.append(Row('wpe.weight', ('embedding/positions',)))
  num_groups = config.num_heads if names.is_grouped else 1
  for n in range(config.num_layers):
    for theirs, ours in names.modules:
      module = names.layer.format(n) + theirs
      found += _module(module, f'decoder_{n}/{ours}', names.is_linear, num_groups, shapes)
  found += _module(names.final_norm, 'final_norm', names.is_linear, 1, shapes)
  if not config.tie_embeddings:
    found.append(Row(names.head, ('head',), is_transposed=True))
  return tuple(found)


def _module(theirs: str, ours: str, is_linear: bool, num_groups: int, shapes: Shapes) -> list[Row]:
  """Rows of one module: those of its parameters that the model has."""
  head, brace, names = ours.partition('{')
  paths = [head + name for name in names.rstrip('}').split(',')] if brace else [ours]
  found = []
  for leaf, tensor in (('kernel', 'weight'), ('scale', 'weight'), ('bias', 'bias')):
    parts = tuple(f'{path}/{leaf}' for path in paths)
    if parts[0] in shapes:
      is_transposed = is_linear and leaf == 'kernel'
      groups = num_groups if len(parts) > 1 else 1
      found.append(Row(f'{theirs}.{tensor}', parts, is_transposed, groups))
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
  names = layout(family)
  if config.decoder.tie_embeddings and names.head in tensors:  # some files write it twice
    head, embedding = tensors.pop(names.head), tensors.get(names.embedding)
    if embedding is not None and not np.array_equal(head.read(), embedding.read()):
      wrong.append(f'{names.head} is not the embedding table, though the two are said to be tied')
  wrong += problems(table, tensors, shapes)
  if wrong:
    raise StageError(f'{source} does not fit {family}: {foreign.shorten(wrong)}')
  found = {}
  for row in table:
    start = 0
    for path in row.ours:
      size = _flat_shape(path, shapes[path])[-1]
      found[path] = _part(tensors[row.theirs], row, start, size, shapes[path])
      start += size
  return found


def _part(tensor: LazyArray, row: Row, start: int, size: int, shape: tuple[int, ...]) -> LazyArray:
  """The parameter of that size that begins there, counted along the output axis."""
  part = slice(start // row.num_groups, (start + size) // row.num_groups)

  def read() -> np.ndarray:
    whole = tensor.read()
    whole = whole.T if row.is_transposed else whole
    groups = whole.reshape(*whole.shape[:-1], row.num_groups, -1)
    return np.ascontiguousarray(groups[..., part], dtype=np.float32).reshape(shape)

  return LazyArray(shape, np.dtype(np.float32), read)


def to_theirs(row: Row, flat: Mapping[str, np.ndarray]) -> np.ndarray:
  """The tensor of a row from our parameters by path, float32."""
  parts = [np.asarray(flat[p], np.float32).reshape(_flat_shape(p, flat[p].shape)) for p in row.ours]
  groups = [part.reshape(*part.shape[:-1], row.num_groups, -1) for part in parts]
  whole = np.concatenate(groups, axis=-1).reshape(*parts[0].shape[:-1], -1)
  return np.ascontiguousarray(whole.T if row.is_transposed else whole)

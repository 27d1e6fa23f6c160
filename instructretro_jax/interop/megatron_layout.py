"""Which tensor of Megatron holds which parameters of ours, and in which order of rows.

Linear weights are [out, in] in Megatron, [in, out] here. Rows of the fused projections stand head
by head: `linear_qkv` is [groups, heads of a group + 2, head width], `linear_kv` [heads, 2, width].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import math

import numpy as np

from instructretro_jax.model.config import RetroConfig


@dataclasses.dataclass(frozen=True)
class Names:
  """The spelling of one family of checkpoints; {} is a layer's number."""

  layer: str
  encoder_layer: str  # after the layer that owns the encoder
  final_norm: str
  input_norm: str
  qkv: str
  attention_output: str
  read_norm: str
  query: str
  key_value: str
  read_output: str
  mlp_norm: str  # of a layer without cross-attention
  retro_mlp_norm: str
  encoder_retro_mlp_norm: str
  widen: str
  narrow: str


LEGACY = Names(
  layer='encoder.layers.{}.',
  encoder_layer='retriever.layers.{}.',
  final_norm='encoder.final_norm',
  input_norm='input_norm',
  qkv='self_attention.query_key_value',
  attention_output='self_attention.dense',
  read_norm='post_attention_norm',
  query='inter_attention.query',
  key_value='inter_attention.key_value',
  read_output='inter_attention.dense',
  mlp_norm='post_attention_norm',
  retro_mlp_norm='post_inter_attention_norm',
  encoder_retro_mlp_norm='post_inter_attention_norm',
  widen='mlp.dense_h_to_4h',
  narrow='mlp.dense_4h_to_h',
)
CORE = Names(
  layer='decoder.layers.{}.',
  encoder_layer='cross_attention.encoder.layers.{}.',
  final_norm='decoder.final_layernorm',
  input_norm='input_layernorm',
  qkv='self_attention.linear_qkv',
  attention_output='self_attention.linear_proj',
  read_norm='pre_cross_attn_layernorm',
  query='cross_attention.attn.linear_q',
  key_value='cross_attention.attn.linear_kv',
  read_output='cross_attention.attn.linear_proj',
  mlp_norm='pre_mlp_layernorm',
  retro_mlp_norm='pre_mlp_layernorm',
  encoder_retro_mlp_norm='pre_mlp_layernorm.norm',
  widen='mlp.linear_fc1',
  narrow='mlp.linear_fc2',
)


@dataclasses.dataclass(frozen=True)
class Part:
  """A parameter of ours inside a tensor of Megatron."""

  path: str
  shape: tuple[int, ...]
  axis: int | None  # where tensor parallelism cuts it


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of Megatron. `unpack` and `pack` work on the share of any tensor-parallel rank."""

  name: str
  shape: tuple[int, ...]
  axis: int | None  # where tensor parallelism cuts it
  parts: tuple[Part, ...]
  unpack: Callable[[np.ndarray, int], np.ndarray]  # (tensor, number of the part) -> parameter
  pack: Callable[[Sequence[np.ndarray]], np.ndarray]

  def shard_shape(self, tensor_parallel: int) -> tuple[int, ...]:
    """Shape on one rank."""
    return tuple(n // tensor_parallel if a == self.axis else n for a, n in enumerate(self.shape))


def tensors(config: RetroConfig, names: Names, with_retrieval: bool) -> Iterator[Tensor]:
  """Every tensor that a checkpoint of this model has."""
  c = config.decoder
  table = 'embedding.word_embeddings.weight'
  yield _same(table, 'embedding/table', (c.vocab_size, c.width), axis=0)
  if c.positions == 'learned':
    shape = (c.max_len, c.width)
    yield _same('embedding.position_embeddings.weight', 'embedding/positions', shape)
  retro_layers = config.retro_layers if with_retrieval else ()
  for n in range(c.num_layers):
    reads = n in retro_layers
    yield from _decoder_layer(config, names, names.layer.format(n), f'decoder_{n}/', reads)
  if with_retrieval:
    owner = names.layer.format(retro_layers[0])
    for n in range(config.encoder_layers):
      yield from _encoder_layer(config, names, owner + names.encoder_layer.format(n), n)
  if c.final_norm:
    yield from _norm(config, names.final_norm, 'final_norm')
  if not c.tie_embeddings:
    yield Tensor(
      'output_layer.weight',
      (c.vocab_size, c.width),
      0,
      (Part('head', (c.width, c.vocab_size), 1),),
      lambda x, _: x.T,
      lambda parts: parts[0].T,
    )


def _decoder_layer(config, names, there, here, reads) -> Iterator[Tensor]:
  c = config.decoder
  yield from _norm(config, there + names.input_norm, f'{here}self_attention/norm')
  yield from _self_attention(config, names, there, f'{here}self_attention/attention', c.kv_heads)
  if reads:
    yield from _norm(config, there + names.read_norm, f'{here}cross_attention/norm')
    yield from _cross_attention(config, names, there, f'{here}cross_attention/attention')
  norm = names.retro_mlp_norm if reads else names.mlp_norm
  yield from _norm(config, there + norm, f'{here}mlp/norm')
  yield from _feed_forward(config, names, there, f'{here}mlp', c.ff_width)


def _encoder_layer(config, names, there, n) -> Iterator[Tensor]:
  here, heads = f'encoder/layer_{n}/', config.decoder.num_heads
  yield from _norm(config, there + names.input_norm, f'{here}attention_norm')
  yield from _self_attention(config, names, there, f'{here}attention', heads)
  if n == 0:
    yield from _norm(config, there + names.read_norm, f'{here}chunk_attention_norm')
    yield from _cross_attention(config, names, there, f'{here}chunk_attention')
  norm = names.encoder_retro_mlp_norm if n == 0 else names.mlp_norm
  yield from _norm(config, there + norm, f'{here}mlp/norm')
  ff_width = config.encoder_ff_width or config.decoder.ff_width
  yield from _feed_forward(config, names, there, f'{here}mlp', ff_width)


def _norm(config, there, here) -> Iterator[Tensor]:
  c = config.decoder
  yield _same(f'{there}.weight', f'{here}/scale', (c.width,))
  if not c.norm.startswith('rmsnorm'):
    yield _same(f'{there}.bias', f'{here}/bias', (c.width,))


def _self_attention(config, names, there, here, kv_heads) -> Iterator[Tensor]:
  queries = config.decoder.num_heads // kv_heads
  parts = {'query': queries, 'key': 1, 'value': 1}
  yield from _head_rows(config, there + names.qkv, here, parts, kv_heads)
  yield from _attention_output(config, there + names.attention_output, here)


def _cross_attention(config, names, there, here) -> Iterator[Tensor]:
  heads = config.decoder.num_heads
  yield from _head_rows(config, there + names.query, here, {'query': 1}, heads)
  yield from _head_rows(config, there + names.key_value, here, {'key': 1, 'value': 1}, heads)
  yield from _attention_output(config, there + names.read_output, here)


def _head_rows(config, there, here, heads_of, groups) -> Iterator[Tensor]:
  """Rows [groups, heads of all parts in a group, head width]."""
  c = config.decoder
  counts, ends = list(heads_of.values()), np.cumsum(list(heads_of.values()))
  width = c.head_width

  def unpack(x, n):
    grid = x.reshape(-1, sum(counts), width, *x.shape[1:])[:, ends[n] - counts[n] : ends[n]]
    return grid.reshape(-1, width, *x.shape[1:])

  def pack(parts):
    grids = [p.reshape(-1, n, *p.shape[1:]) for p, n in zip(parts, counts)]
    return np.concatenate(grids, axis=1).reshape(-1, *parts[0].shape[2:])

  outs = {name: (groups * n, width) for name, n in heads_of.items()}
  yield from _column_parallel(config, there, here, outs, unpack, pack)


def _feed_forward(config, names, there, here, ff_width) -> Iterator[Tensor]:
  """Rows of the widening map: all of `gate`, then all of `up`, on each rank."""
  c = config.decoder
  outs = {'up': (ff_width,)}
  if c.activation in ('swiglu', 'geglu'):
    outs = {'gate': (ff_width,), 'up': (ff_width,)}
  unpack = lambda x, n: x.reshape(len(outs), -1, *x.shape[1:])[n]
  yield from _column_parallel(config, there + names.widen, here, outs, unpack, np.concatenate)
  yield from _row_parallel(config, there + names.narrow, f'{here}/down', (ff_width,))


def _column_parallel(config, there, here, outs, unpack, pack) -> Iterator[Tensor]:
  c = config.decoder
  num_rows = sum(math.prod(out) for out in outs.values())
  yield Tensor(
    f'{there}.weight',
    (num_rows, c.width),
    0,
    tuple(Part(f'{here}/{name}/kernel', (c.width, *out), 1) for name, out in outs.items()),
    lambda x, n: np.moveaxis(unpack(x, n), -1, 0),
    lambda parts: pack([np.moveaxis(p, 0, -1) for p in parts]),
  )
  if c.use_bias:
    parts = tuple(Part(f'{here}/{name}/bias', out, 0) for name, out in outs.items())
    yield Tensor(f'{there}.bias', (num_rows,), 0, parts, unpack, pack)


def _attention_output(config, there, here) -> Iterator[Tensor]:
  c = config.decoder
  yield from _row_parallel(config, there, f'{here}/output', (c.num_heads, c.head_width))


def _row_parallel(config, there, here, ins) -> Iterator[Tensor]:
  c = config.decoder
  yield Tensor(
    f'{there}.weight',
    (c.width, math.prod(ins)),
    1,
    (Part(f'{here}/kernel', (*ins, c.width), 0),),
    lambda x, _: x.T.reshape(-1, *ins[1:], c.width),
    lambda parts: parts[0].reshape(-1, c.width).T,
  )
  if c.use_bias:
    yield _same(f'{there}.bias', f'{here}/bias', (c.width,))


def _same(name: str, path: str, shape: tuple[int, ...], axis: int | None = None) -> Tensor:
  part = Part(path, shape, axis)
  return Tensor(name, shape, axis, (part,), lambda x, _: x, lambda parts: parts[0])

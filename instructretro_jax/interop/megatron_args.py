"""Megatron's stored arguments to a configuration of ours, and back."""

from __future__ import annotations

import argparse
from collections.abc import Set
from typing import Any

from instructretro_jax.interop.megatron_settings import unsupported
from instructretro_jax.model.config import DecoderConfig, RetroConfig, reference_retro_layers
from instructretro_jax.model.rotary_scaling import Llama3Scaling
from instructretro_jax.pipeline.manifest import StageError

_NORMS = {'LayerNorm': 'layernorm', 'RMSNorm': 'rmsnorm'}


def to_config(args: argparse.Namespace, names: Set[str], *, is_core: bool) -> RetroConfig:
  """The model that a checkpoint's arguments describe.

  Args:
    args: the namespace of the checkpoint.
    names: the tensors of the checkpoint; they tell what later Megatrons decide by themselves
      (positions, final norm).
    is_core: written by megatron-core, whose encoder keeps the normed state as its residual.

  Raises StageError for missing arguments and for those this model cannot follow, all at once.
  """
  get = lambda name, default=None: getattr(args, name, default)
  needed = ('num_layers', 'hidden_size', 'num_attention_heads', 'padded_vocab_size')
  wrong = [f'{name} is missing' for name in needed if get(name) is None]
  wrong += unsupported(vars(args))
  if get('normalization', 'LayerNorm') not in _NORMS:
    wrong.append(f'normalization is {args.normalization!r}: one of {list(_NORMS)} is supported')
  if not wrong and get('kv_channels') not in (None, args.hidden_size // args.num_attention_heads):
    wrong.append(f'kv_channels is {args.kv_channels}: hidden_size / heads is supported')
  if wrong:
    raise StageError("the checkpoint's arguments:\n" + '\n'.join(f'  {line}' for line in wrong))
  groups = get('num_query_groups') if get('group_query_attention', False) else None
  decoder = DecoderConfig(
    vocab_size=args.padded_vocab_size,
    num_layers=args.num_layers,
    width=args.hidden_size,
    num_heads=args.num_attention_heads,
    ff_width=get('ffn_hidden_size') or _default_ff_width(args),
    num_kv_heads=None if groups == args.num_attention_heads else groups,
    activation=_activation(args),
    norm=_norm(args),
    norm_eps=get('norm_epsilon', get('layernorm_epsilon', 1e-5)),
    positions=_positions(args, names),
    rotary_fraction=float(get('rotary_percent', 1.0)),
    rotary_base=float(get('rotary_base', 10_000)),
    rotary_interleaved=bool(get('rotary_interleaved', False)),
    rotary_scaling=_rotary_scaling(args),
    max_len=get('max_position_embeddings') or 2048,
    use_bias=bool(get('add_bias_linear', True)),
    tie_embeddings=not get('untie_embeddings_and_output_weights', False),
    final_norm=not is_core or any(n.startswith('decoder.final_layernorm') for n in names),
    init_std=get('init_method_std', 0.02),
    embedding_init_std=get('init_method_std', 0.02),
  )
  # A model too shallow for the reference's rule has no cross-attention; should it get one later,
  # it will be in the last layer.
  by_rule = reference_retro_layers(args.num_layers)
  return RetroConfig(
    decoder=decoder,
    chunk_len=get('retro_chunk_length') or get('retro_gpt_chunk_length') or 64,
    encoder_layers=get('retro_encoder_layers', 2),
    cross_attention_layers=None if by_rule else (args.num_layers - 1,),
    encoder_residual='normed' if is_core else 'hidden',
  )


def has_retriever(args: argparse.Namespace) -> bool:
  """Whether the checkpoint should hold an encoder and cross-attention."""
  added = bool(getattr(args, 'retro_add_retriever', False))
  return added and bool(reference_retro_layers(args.num_layers))


def from_config(
  config: RetroConfig, with_retrieval: bool, tensor_parallel: int
) -> argparse.Namespace:
  """Arguments with which legacy Megatron computes the same.

  Raises StageError for every switch that Megatron does not have, all at once.
  """
  c = config.decoder
  unlike = []
  refuse = lambda name, value: unlike.append(f'{name} = {value!r}')
  plain_values = (
    ('embedding_scale', 1.0), ('final_norm', True), ('attention_window', None),
    ('rotary_scaling', None), ('norm_placement', 'input'), ('parallel_residual', False),
  )  # fmt: skip
  for name, plain in plain_values:
    if getattr(c, name) != plain:
      refuse(name, getattr(c, name))
  for name in ('qkv_bias', 'qk_norm'):
    if getattr(c, name):
      refuse(name, True)
  if c.activation == 'geglu':
    refuse('activation', c.activation)
  if c.norm == 'rmsnorm_1p':
    refuse('norm', c.norm)
  if c.activation == 'gelu_tanh' and not c.use_bias:
    refuse('activation without biases', c.activation)  # its tanh form is fused with the bias
  if c.positions == 'none':
    refuse('positions', c.positions)
  if c.width // c.num_heads != c.head_width:
    refuse('head_width', c.head_width)
  if with_retrieval:
    plain = RetroConfig(decoder=c)
    for name in (
      'mask_neighbours',
      'encoder_rotary',
      'encoder_relative_bias',
      'cross_attention_rotary',
      'encoder_residual',
      'value_shift',
      'retro_layers',
    ):
      if getattr(config, name) != getattr(plain, name):
        refuse(name, getattr(config, name))
    for name in ('num_heads', 'head_width', 'ff_width'):
      if getattr(config.encoder_stack, name) != getattr(c, name):
        refuse(f'encoder {name}', getattr(config.encoder_stack, name))
    if config.encoder_width is not None:
      refuse('encoder_width', config.encoder_width)
    if c.kv_heads != c.num_heads:
      refuse('num_kv_heads', c.num_kv_heads)
  for name, size in (('vocab_size', c.vocab_size), ('kv heads', c.kv_heads)):
    if size % tensor_parallel:
      unlike.append(f'{name} {size} cannot be cut for tensor_parallel {tensor_parallel}')
  if c.ff_width % tensor_parallel:
    unlike.append(f'ff_width {c.ff_width} cannot be cut for tensor_parallel {tensor_parallel}')
  if unlike:
    raise StageError('Megatron cannot hold this model:\n' + '\n'.join(f'  {x}' for x in unlike))
  retro = _retro_arguments(config, with_retrieval)
  return argparse.Namespace(**_decoder_arguments(c, tensor_parallel), **retro)


def _decoder_arguments(c: DecoderConfig, tensor_parallel: int) -> dict[str, Any]:
  rotary = c.positions == 'rotary'
  return dict(
    num_layers=c.num_layers,
    encoder_num_layers=c.num_layers,
    hidden_size=c.width,
    num_attention_heads=c.num_heads,
    kv_channels=c.head_width,
    group_query_attention=c.kv_heads != c.num_heads,
    num_query_groups=c.kv_heads,
    ffn_hidden_size=c.ff_width,
    swiglu=c.activation == 'swiglu',
    squared_relu=c.activation == 'squared_relu',
    bias_gelu_fusion=c.activation == 'gelu_tanh',
    openai_gelu=False,
    onnx_safe=None,
    add_bias_linear=c.use_bias,
    normalization='RMSNorm' if c.norm == 'rmsnorm' else 'LayerNorm',
    apply_layernorm_1p=c.norm == 'layernorm_1p',
    layernorm_epsilon=c.norm_eps,
    norm_epsilon=c.norm_eps,
    position_embedding_type='rope' if rotary else 'learned_absolute',
    use_rotary_position_embeddings=rotary,
    add_position_embedding=not rotary,
    rotary_percent=c.rotary_fraction,
    rotary_base=c.rotary_base,
    rotary_interleaved=c.rotary_interleaved,
    max_position_embeddings=c.max_len,
    untie_embeddings_and_output_weights=not c.tie_embeddings,
    # so that Megatron's own rule, a multiple of this times the ranks, gives exactly our rows
    make_vocab_size_divisible_by=c.vocab_size // tensor_parallel,
    padded_vocab_size=c.vocab_size,
    init_method_std=c.init_std,
    apply_residual_connection_post_layernorm=False,
    tensor_model_parallel_size=tensor_parallel,
    pipeline_model_parallel_size=1,
  )


def _retro_arguments(config: RetroConfig, with_retrieval: bool) -> dict[str, Any]:
  return dict(
    retro_add_retriever=with_retrieval,
    retro_encoder_layers=config.encoder_layers,
    retro_chunk_length=config.chunk_len,
    retro_attention_gate=1,
  )


def _default_ff_width(args: argparse.Namespace) -> int:
  if getattr(args, 'swiglu', False):
    return int(args.hidden_size * 4 * 2 / 3 / 64) * 64
  return 4 * args.hidden_size


def _norm(args: argparse.Namespace) -> str:
  if getattr(args, 'apply_layernorm_1p', False):
    return 'rmsnorm_1p' if getattr(args, 'normalization', None) == 'RMSNorm' else 'layernorm_1p'
  return _NORMS[getattr(args, 'normalization', 'LayerNorm')]


def _positions(args: argparse.Namespace, names: Set[str]) -> str:
  if 'embedding.position_embeddings.weight' in names:
    return 'learned'
  kind = getattr(args, 'position_embedding_type', 'learned_absolute')
  if getattr(args, 'use_rotary_position_embeddings', False) or kind == 'rope':
    return 'rotary'
  return 'none' if kind == 'none' else 'learned'


def _rotary_scaling(args: argparse.Namespace) -> Llama3Scaling | None:
  """Megatron's has only its factor to choose."""
  factor = float(getattr(args, 'rope_scaling_factor', None) or 8)
  is_scaled = getattr(args, 'use_rope_scaling', False) and factor != 1
  return Llama3Scaling(factor=factor) if is_scaled else None


def _activation(args: argparse.Namespace) -> str:
  """GELU is its tanh form where Megatron fuses it with the bias, which is its default."""
  get = lambda name, default=False: getattr(args, name, default)
  for name in ('swiglu', 'squared_relu'):
    if get(name):
      return name
  if get('openai_gelu'):
    return 'gelu_tanh'
  fused = get('bias_gelu_fusion', True) and get('add_bias_linear', True)
  return 'gelu_tanh' if fused and not get('onnx_safe') else 'gelu'

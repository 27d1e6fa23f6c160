"""What a model is: the decoder and its retrieval part."""

from __future__ import annotations

import dataclasses
from typing import Any

from instructretro_jax.model.rotary_scaling import RotaryScaling

ACTIVATIONS = ('gelu', 'gelu_tanh', 'squared_relu', 'swiglu', 'geglu')
NORMS = ('layernorm', 'layernorm_1p', 'rmsnorm', 'rmsnorm_1p')
NORM_PLACEMENTS = ('input', 'output')
POSITIONS = ('rotary', 'learned', 'none')


def _only_init(default: float) -> Any:
  """A field that decides how fresh parameters are drawn, and nothing about given ones."""
  return dataclasses.field(default=default, metadata={'only_init': True})


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
  """A decoder-only transformer."""

  vocab_size: int  # V
  num_layers: int
  width: int  # D
  num_heads: int  # H
  ff_width: int  # F
  num_kv_heads: int | None = None  # G; H if not given
  width_per_head: int | None = None  # A; D / H if not given
  activation: str = 'swiglu'
  norm: str = 'rmsnorm'
  norm_eps: float = 1e-5
  norm_placement: str = 'input'  # of attention and MLP; 'output': before it is added (OLMo 2)
  parallel_residual: bool = False  # attention and MLP read the same stream (GPT-NeoX)
  positions: str = 'rotary'
  rotary_fraction: float = 1.0  # share of the head width that rotary positions act on
  rotary_base: float = 10_000.0
  rotary_interleaved: bool = False  # pairs (2i, 2i + 1) instead of (i, i + A/2)
  rotary_scaling: RotaryScaling | None = None  # of frequencies, for texts longer than at first
  max_len: int = 2048  # rows of the learned position table
  attention_window: int | None = None  # its weights attend no further, so that texts end there
  use_bias: bool = False  # of linear maps; norms have what their kind has
  qkv_bias: bool = False  # of queries, keys and values even without use_bias (Qwen2)
  qk_norm: bool = False  # norm over A of queries and keys, before rotary positions (Qwen3)
  qk_norm_across_heads: bool = False  # that norm is over H * A (OLMo 2)
  tie_embeddings: bool = True
  final_norm: bool = True
  embedding_scale: float = 1.0  # multiplies embeddings that enter the stream
  embedding_init_std: float = _only_init(0.02)
  init_std: float = _only_init(0.02)  # output projections: divided by sqrt(2 * num_layers)

  def __post_init__(self):
    require_in('activation', self.activation, ACTIVATIONS)
    require_in('norm', self.norm, NORMS)
    require_in('norm_placement', self.norm_placement, NORM_PLACEMENTS)
    require_in('positions', self.positions, POSITIONS)
    if self.qk_norm_across_heads and not self.qk_norm:
      raise ValueError('qk_norm_across_heads says over what qk_norm is: set that too')
    if self.width_per_head is None and self.width % self.num_heads:
      raise ValueError(
        f'width {self.width} is no multiple of num_heads {self.num_heads}: give width_per_head'
      )
    if self.num_heads % self.kv_heads:
      raise ValueError(f'num_heads {self.num_heads} is no multiple of kv heads {self.kv_heads}')

  @property
  def longest_text(self) -> int | None:
    """The most tokens of a text that the weights are for; None: no bound."""
    learned = [self.max_len] if self.positions == 'learned' else []
    window = [self.attention_window] if self.attention_window is not None else []
    return min(learned + window, default=None)

  @property
  def bound_in_words(self) -> str:
    """What `longest_text` comes from."""
    if self.longest_text == self.attention_window:
      return f'{self.attention_window} tokens of its attention window (attention_window)'
    return f'{self.longest_text} learned positions (max_len)'

  @property
  def kv_heads(self) -> int:
    """G: key/value heads, H unless fewer are given."""
    return self.num_kv_heads or self.num_heads

  @property
  def head_width(self) -> int:
    """A: D / H unless given."""
    return self.width_per_head or self.width // self.num_heads


def decoder_differences(there: DecoderConfig, here: DecoderConfig) -> list[str]:
  """Fields by which the same weights would give other logits, with both values, in words."""
  names = [f.name for f in dataclasses.fields(DecoderConfig) if not f.metadata.get('only_init')]
  if 'learned' not in (there.positions, here.positions):
    names.remove('max_len')
  names[names.index('num_kv_heads')] = 'kv_heads'  # what they come to
  names[names.index('width_per_head')] = 'head_width'
  pairs = [(name, getattr(there, name), getattr(here, name)) for name in names]
  return [f'{name} is {a!r} there and {b!r} here' for name, a, b in pairs if a != b]


# of the encoder; compared as what they come to
_ENCODER_WIDTHS = ('encoder_ff_width', 'encoder_width', 'encoder_heads', 'encoder_width_per_head')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetroConfig:
  """A decoder with a neighbour encoder and chunked cross-attention.

  The defaults are the semantics of the released models (legacy Megatron); the experiments of
  this project set the better side of each switch.
  """

  decoder: DecoderConfig
  chunk_len: int = 64  # C
  encoder_layers: int = 2
  encoder_ff_width: int | None = None  # the decoder's F if not given
  encoder_width: int | None = None  # E; given: the encoder also has its own embeddings (RETRO)
  encoder_heads: int | None = None  # the decoder's H if not given
  encoder_width_per_head: int | None = None  # the decoder's if not given
  cross_attention_layers: tuple[int, ...] | None = None  # from 0; reference rule if not given
  mask_neighbours: bool = False  # padding and other documents' neighbours are not attended
  encoder_rotary: bool = False  # rotary positions inside the neighbour encoder
  encoder_relative_bias: bool = False  # learned bias per head and offset in its first layer
  cross_attention_rotary: bool = False  # key j at j, query i at C - 1 + i (RETRO: relative)
  encoder_residual: str = 'hidden'  # 'normed' reproduces megatron-core
  value_shift: int = 0  # 1: match key j, read value j + 1; not in the paper

  def __post_init__(self):
    require_in('encoder_residual', self.encoder_residual, ('hidden', 'normed'))
    require_in('value_shift', self.value_shift, (0, 1))
    layers = self.retro_layers
    if not layers or layers[0] < 0 or layers[-1] >= self.decoder.num_layers:
      raise ValueError(
        f'cross_attention_layers {layers} do not fit {self.decoder.num_layers} decoder layers: '
        'name at least one, counted from 0'
      )

  @property
  def encoder_stack(self) -> DecoderConfig:
    """The encoder's own widths; all else is that of the cross-attention."""
    c = self.cross_attention_stack
    return dataclasses.replace(
      c,
      width=self.encoder_width or c.width,
      num_heads=self.encoder_heads or c.num_heads,
      num_kv_heads=None,
      width_per_head=self.encoder_width_per_head or c.width_per_head,
      ff_width=self.encoder_ff_width or c.ff_width,
    )

  @property
  def cross_attention_stack(self) -> DecoderConfig:
    """As the decoder, but with norms before each part, and without rotary scaling.

    A scaling is for more tokens than the decoder saw at first. Cross-attention and encoder are
    trained from their init, on positions that count inside of one neighbour.
    """
    return dataclasses.replace(self.decoder, norm_placement='input', rotary_scaling=None)

  @property
  def retro_layers(self) -> tuple[int, ...]:
    """Decoder layers with cross-attention, from 0."""
    if self.cross_attention_layers is not None:
      return tuple(sorted(self.cross_attention_layers))
    return reference_retro_layers(self.decoder.num_layers)


def retrieval_differences(there: RetroConfig, here: RetroConfig) -> list[str]:
  """What makes encoder and cross-attention compute something else with the same parameters."""
  switches = [
    field.name
    for field in dataclasses.fields(RetroConfig)
    if field.name not in ('decoder', 'cross_attention_layers', *_ENCODER_WIDTHS)
  ]
  pairs = [(name, getattr(there, name), getattr(here, name)) for name in switches]
  pairs.append(('cross_attention_layers', there.retro_layers, here.retro_layers))
  differences = [f'{name} is {a!r} there and {b!r} here' for name, a, b in pairs if a != b]
  of_encoder = decoder_differences(there.encoder_stack, here.encoder_stack)
  of_decoder = decoder_differences(there.decoder, here.decoder)
  return differences + [f'of the encoder, {text}' for text in of_encoder if text not in of_decoder]


def reference_retro_layers(num_layers: int) -> tuple[int, ...]:
  """The reference's rule: from layer 6 (9 if deeper than 15), every third; here from 0."""
  return tuple(range(5 if num_layers <= 15 else 8, num_layers, 3))


def require_in(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
  """Raises ValueError if a value is none of a closed set."""
  if value not in allowed:
    raise ValueError(f'{name} must be one of {allowed}, not {value!r}')

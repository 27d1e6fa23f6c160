"""The parts that every block is made of: linear maps, norms, feed-forward, embeddings."""

from __future__ import annotations

import functools
import math
from typing import TypeVar

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from instructretro_jax.array_types import Array
from instructretro_jax.model.config import DecoderConfig
from instructretro_jax.model.sharding import constrain

T = TypeVar('T')


def _gelu(x: Array) -> Array:
  # by erf, as Megatron's; jax.nn.gelu takes erfc, exact far below zero and twice as slow on CPUs
  return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def _gelu_tanh(x: Array) -> Array:
  # Megatron's constant is sqrt(2 / pi) cut to 8 digits: the same number in float32, not in float64
  return 0.5 * x * (1 + jnp.tanh(0.79788456 * (x + 0.044715 * x**3)))


_ACTIVATIONS = {
  'gelu': _gelu,
  'gelu_tanh': _gelu_tanh,
  'squared_relu': lambda x: jnp.square(jax.nn.relu(x)),
  'swiglu': jax.nn.silu,
  'geglu': lambda x: jax.nn.gelu(x, approximate=True),
}
_GATED = ('swiglu', 'geglu')


def over_last(vector: Array, x: Array) -> Array:
  """`vector` with leading axes of size 1, so that it meets the last axes of `x`."""
  return vector.reshape((1,) * (x.ndim - vector.ndim) + vector.shape)


def spread(term: Array, x: Array) -> Array:
  """`term`, one for many positions, with the shape and type of `x`, which it is added to.

  It is cast last: its gradient, a sum over positions, would be taken in the type of `x` else, and
  in bf16 that of a bias would be off by 14 % after 131,072 of them.
  """
  return jnp.broadcast_to(over_last(term, x), x.shape).astype(x.dtype)


@jax.custom_vjp
def _product(x_ND: Array, kernel_DF: Array) -> Array:
  """The matrix product [N, F], in the type of `x_ND`.

  The gradient of the kernel has the kernel's type: a mesh adds it up over its devices in float32,
  as Megatron does.
  """
  return x_ND @ kernel_DF.astype(x_ND.dtype)


def _product_backward(residuals: tuple[Array, Array], grad_NF: Array) -> tuple[Array, Array]:
  x_ND, kernel_DF = residuals
  dtype = jnp.promote_types(x_ND.dtype, kernel_DF.dtype)
  product = functools.partial(jnp.matmul, preferred_element_type=dtype)
  fused = lambda x, grad: product(x.T, grad)
  # on CPUs a product that transposes its first factor by itself runs at 65 to 85 % of the speed
  transposed = lambda x, grad: product(jax.lax.optimization_barrier(x.T), grad)
  kernel_grad = jax.lax.platform_dependent(x_ND, grad_NF, cpu=transposed, default=fused)
  return grad_NF @ kernel_DF.astype(x_ND.dtype).T, kernel_grad.astype(kernel_DF.dtype)


_product.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)), _product_backward)


class Linear(nn.Module):
  """A linear map over the last `num_in` axes, with a bias if it or the model has biases.

  Attributes:
    features: shape of the output axes.
    axes: logical names of the kernel's axes, inputs first.
  """

  features: tuple[int, ...]
  axes: tuple[str, ...]
  config: DecoderConfig
  num_in: int = 1
  init_std: float | None = None
  has_bias: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = self.config
    inputs = x.shape[-self.num_in :]
    init = nn.initializers.normal(self.init_std or c.init_std)
    kernel = self.param(
      'kernel', nn.with_logical_partitioning(init, self.axes), (*inputs, *self.features)
    )
    # two axes each: with more, the gradient of the kernel would transpose that of y
    rows = x.reshape(-1, math.prod(inputs))
    matrix = kernel.reshape(math.prod(inputs), math.prod(self.features))
    y = _product(rows, matrix).reshape(*x.shape[: -self.num_in], *self.features)
    if c.use_bias or self.has_bias:
      zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[self.num_in :])
      y += spread(self.param('bias', zeros, self.features), y)
    return checkpoint_name(y, self.name)


def in_memory(x: T) -> T:
  """`x`, and its gradient, written to memory before anything reads it.

  Else TPUs compute it again for each tile of the product that reads it, or together with the
  product that makes it. By the compiler's estimate that costs the 48 layers of 43B 0.08 s a step
  around gated products, 0.05 s around norms and 0.04 s around what is added to the stream.
  """
  return jax.lax.optimization_barrier(x)


class Norm(nn.Module):
  """LayerNorm or RMSNorm, of which -1p stores the scale less 1; statistics in float32."""

  config: DecoderConfig

  @nn.compact
  def __call__(self, x: Array) -> Array:
    c = self.config
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    is_1p = c.norm.endswith('_1p')
    start = nn.initializers.zeros if is_1p else nn.initializers.ones
    scale = self.param('scale', nn.with_logical_partitioning(start, ('norm',)), (x.shape[-1],))
    scale = scale + 1 if is_1p else scale
    if c.norm.startswith('rmsnorm'):
      y = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + c.norm_eps)
      return in_memory((y * over_last(scale, y)).astype(x.dtype))
    centred = wide - jnp.mean(wide, -1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), -1, keepdims=True)
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, ('norm',))
    bias = self.param('bias', zeros, (x.shape[-1],))
    y = centred * jax.lax.rsqrt(variance + c.norm_eps)
    return in_memory((y * over_last(scale, y) + over_last(bias, y)).astype(x.dtype))


class FeedForward(nn.Module):
  """The position-wise MLP with its norm; returns what is added to the stream."""

  config: DecoderConfig
  ff_width: int

  @nn.compact
  def __call__(self, x_BTD: Array) -> Array:
    c = self.config
    h = Norm(c, name='norm')(x_BTD) if c.norm_placement == 'input' else x_BTD
    widen = lambda name: Linear((self.ff_width,), ('embed', 'mlp'), c, name=name)(h)
    act = _ACTIVATIONS[c.activation]
    if c.activation in _GATED:
      gate, up = in_memory((widen('gate'), widen('up')))
      wide = in_memory(act(gate) * up)
    else:
      wide = act(widen('up'))
    std = c.init_std / (2 * c.num_layers) ** 0.5
    y_BTD = Linear((c.width,), ('mlp', 'embed'), c, init_std=std, name='down')(wide)
    return Norm(c, name='output_norm')(y_BTD) if c.norm_placement == 'output' else y_BTD


class Embedding(nn.Module):
  """Token (and learned position) embeddings, shared by sequence and neighbours."""

  config: DecoderConfig
  dtype: str = 'float32'

  def setup(self):
    c = self.config
    init = nn.initializers.normal(c.embedding_init_std)
    self.table = self.param(
      'table', nn.with_logical_partitioning(init, ('vocab', 'embed')), (c.vocab_size, c.width)
    )
    if c.positions == 'learned':
      self.positions = self.param(
        'positions',
        nn.with_logical_partitioning(init, ('positions', 'embed')),
        (c.max_len, c.width),
      )

  def __call__(self, tokens_BT: Array, positions_BT: Array | None = None) -> Array:
    """Embeddings [B, T, D]; positions, used if learned, count from 0 or are given.

    Raises ValueError if T tokens counted from 0 exceed the table; given ones are not checked.
    """
    c, length = self.config, tokens_BT.shape[-1]
    x_BTD = jnp.take(self.table, tokens_BT, axis=0).astype(self.dtype) * c.embedding_scale
    if c.positions == 'learned':
      if positions_BT is None:
        positions_BT = jnp.arange(length)[None]
        if length > c.max_len:
          raise ValueError(f'{length} tokens do not fit {c.max_len} learned positions (max_len)')
      x_BTD += spread(jnp.take(self.positions, positions_BT, axis=0), x_BTD)
    return constrain(x_BTD, 'batch', 'act_length', 'act_embed')

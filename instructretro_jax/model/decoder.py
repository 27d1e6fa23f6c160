"""The decoder's layers: self-attention, what is read from neighbours, MLP; alone or in a scan."""

from __future__ import annotations

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from instructretro_jax.array_types import Array
from instructretro_jax.model.attention import Attention, KeyValues
from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.model.cross_attention import ChunkedCrossAttention, Encoded
from instructretro_jax.model.execution import Execution
from instructretro_jax.model.layer_groups import LayerGroup
from instructretro_jax.model.layers import FeedForward, Norm, in_memory
from instructretro_jax.model.remat import rematerialised
from instructretro_jax.model.sharding import constrain

READING = 'reading'  # collection of what each cross-attention adds to the stream
SQUARES = 'squares'  # of one: sums over L and D of what it adds and of what it adds to, [B, 2]


class SelfAttention(nn.Module):
  """Causal self-attention with its norm; returns what is added to the stream."""

  config: DecoderConfig
  kernel: str = 'dot_product'  # of causal attention over whole sequences

  def setup(self):
    if self.config.norm_placement == 'input':
      self.norm = Norm(self.config)
    else:
      self.output_norm = Norm(self.config)
    self.attention = Attention(self.config, self.config.kv_heads)

  def __call__(
    self, x_BLD: Array, positions: Array, segments_BL: Array | None
  ) -> tuple[Array, KeyValues]:
    """Over whole sequences, inside of a segment; also returns the keys and values."""
    h, positions = self._input(x_BLD), self._rotary(positions)
    keys_values = self.attention.keys_values(h, positions)
    queries = self.attention.queries(h, positions)
    read = self.attention.read_causally(queries, keys_values, segments_BL, self.kernel)
    return self._output(read), keys_values

  def extend(
    self, x_BTD: Array, positions: Array, past: KeyValues, slot: Array, mask_B1TU: Array
  ) -> tuple[Array, KeyValues]:
    """Over `past` with the keys and values of `x_BTD` written from `slot` on, which it returns."""
    h, positions = self._input(x_BTD), self._rotary(positions)
    write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, slot, axis=1)
    keys_values = jax.tree.map(write, past, self.attention.keys_values(h, positions))
    queries = self.attention.queries(h, positions)
    return self._output(self.attention.read(queries, keys_values, mask_B1TU)), keys_values

  def _input(self, x_BTD: Array) -> Array:
    return self.norm(x_BTD) if self.config.norm_placement == 'input' else x_BTD

  def _output(self, y_BTD: Array) -> Array:
    return self.output_norm(y_BTD) if self.config.norm_placement == 'output' else y_BTD

  def _rotary(self, positions: Array) -> Array | None:
    return positions if self.config.positions == 'rotary' else None


class DecoderLayer(nn.Module):
  """One layer; `attend` ends and `finish` begins where neighbours are read.

  With a parallel residual the MLP, which reads what attention reads, is part of `attend`.
  """

  config: RetroConfig
  kernel: str = 'dot_product'  # of self-attention

  def setup(self):
    c = self.config
    self.self_attention = SelfAttention(c.decoder, self.kernel)
    self.cross_attention = ChunkedCrossAttention(c)
    self.mlp = FeedForward(c.decoder, c.decoder.ff_width)

  def __call__(
    self,
    x_BLD: Array,
    positions: Array,
    segments_BL: Array | None,
    gate_B11: Array,
    encoded: Encoded | None,
  ) -> tuple[Array, KeyValues]:
    """The stream after the layer, and its keys and values; nothing is read if `encoded` is None."""
    x_BLD, keys_values = self.attend(x_BLD, positions, segments_BL)
    return self.finish(x_BLD, gate_B11, encoded), keys_values

  def attend(
    self, x_BLD: Array, positions: Array, segments_BL: Array | None
  ) -> tuple[Array, KeyValues]:
    """The stream after self-attention."""
    added, keys_values = self.self_attention(x_BLD, positions, segments_BL)
    return checkpoint_name(self._add_attended(x_BLD, added), 'stream'), keys_values

  def extend(
    self, x_BTD: Array, positions: Array, past: KeyValues, slot: Array, mask_B1TU: Array
  ) -> tuple[Array, KeyValues]:
    """As `attend`, over keys and values of the past too; see `SelfAttention.extend`."""
    added, keys_values = self.self_attention.extend(x_BTD, positions, past, slot, mask_B1TU)
    return self._add_attended(x_BTD, added), keys_values

  def finish(self, x_BLD: Array, gate_B11: Array, encoded: Encoded | None) -> Array:
    """The stream after chunked cross-attention and MLP."""
    if encoded is not None:
      h_BLD = self.cross_attention.normalize(x_BLD)
      read_BLD = self.cross_attention(h_BLD, encoded)
      self._note_reading(gate_B11 * read_BLD, x_BLD)
      x_BLD = checkpoint_name(x_BLD + gate_B11 * read_BLD, 'stream')
    if not self.config.decoder.parallel_residual:
      x_BLD += in_memory(self.mlp(x_BLD))
    return constrain(x_BLD, 'batch', 'act_length', 'act_embed')

  def _note_reading(self, added_BLD: Array, x_BLD: Array) -> None:
    """Sows `SQUARES` if somebody asks; by row, so that a mesh need not add up in each layer."""
    if self.is_mutable_collection(READING):
      wide = jnp.promote_types(x_BLD.dtype, jnp.float32)
      sums = [jnp.square(y.astype(wide)).sum(axis=(1, 2)) for y in (added_BLD, x_BLD)]
      squares_B2 = jax.lax.stop_gradient(jnp.stack(sums, axis=1))
      self.sow(READING, SQUARES, squares_B2, reduce_fn=lambda _, new: new)

  def _add_attended(self, x_BTD: Array, added_BTD: Array) -> Array:
    y_BTD = x_BTD + in_memory(added_BTD)
    return y_BTD + in_memory(self.mlp(x_BTD)) if self.config.decoder.parallel_residual else y_BTD


class ScannedLayers(nn.Module):
  """Layers that follow each other, as the body of a scan."""

  config: RetroConfig
  execution: Execution
  reads: tuple[bool, ...]

  @nn.compact
  def __call__(self, x_BLD: Array, positions, segments_BL, gate_B11, encoded) -> tuple[Array, None]:
    layer = rematerialised(DecoderLayer, self.execution.remat)
    for j, reads in enumerate(self.reads):
      x_BLD, _ = layer(self.config, self.execution.attention, name=f'layer_{j}')(
        x_BLD, positions, segments_BL, gate_B11, encoded if reads else None
      )
    return x_BLD, None


def make_layers(config: RetroConfig, execution: Execution, group: LayerGroup) -> nn.Module:
  """The module of a group of layers: a `DecoderLayer`, or a scan over `ScannedLayers`."""
  if group.count == 1:
    methods = ('__call__', 'attend', 'finish')
    layer = rematerialised(DecoderLayer, execution.remat, methods)
    return layer(config, execution.attention)
  scanned = nn.scan(
    ScannedLayers,
    variable_axes={'params': 0, READING: 0},
    split_rngs={'params': True},
    in_axes=nn.broadcast,
    length=group.count,
    metadata_params={nn.PARTITION_NAME: 'layers'},
  )
  return scanned(config, execution, group.reads)

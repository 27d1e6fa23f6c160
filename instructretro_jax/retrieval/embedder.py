"""What turns texts into search vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import importlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from instructretro_jax.pipeline import configuration, manifest

# the modules of those that come with this package, by the name that a manifest has for them
_MODULES = {
  'MiniLm': 'instructretro_jax.retrieval.minilm',
  'WordVectors': 'instructretro_jax.retrieval.word_vectors',
}


class Embedder(Protocol):
  """A frozen dataclass of plain values, so that it can be part of a stage's arguments."""

  def fit(self, texts: Iterable[str], folder: Path) -> None:
    """Learns what it needs of the database and writes it to `folder`; nothing if it is there."""

  def load(self, folder: Path) -> EmbedTexts:
    """The function that embeds chunks and queries alike, with what `fit` wrote to `folder`."""


class EmbedTexts(Protocol):
  """A function that embeds texts."""

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Vectors [len(texts), S] float32 of length 1, or 0 where a text has nothing to go by."""


def from_manifest(recorded: Mapping[str, Any]) -> Embedder:
  """The embedder that a manifest records, one of this package or of an importable module.

  Raises StageError if there is no such class, or it has other fields now.
  """
  name = recorded['class']
  module, _, kind = name.rpartition('.')
  module = module or _MODULES.get(name, '')
  try:
    found = getattr(importlib.import_module(module), kind)
  except (ImportError, AttributeError, ValueError) as error:
    raise manifest.StageError(
      f'the embedder {name} is none of {sorted(_MODULES)} and cannot be imported ({error}): put '
      'its module on the path'
    ) from error
  return configuration.from_json(found, recorded)


def normalize(x_MS: np.ndarray) -> np.ndarray:
  """Rows scaled to length 1 as float32; zero rows stay zero."""
  length_M1 = np.linalg.norm(x_MS, axis=1, keepdims=True)
  return (x_MS / np.maximum(length_M1, 1e-12)).astype(np.float32)

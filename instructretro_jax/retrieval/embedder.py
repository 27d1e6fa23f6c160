"""What turns texts into search vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np


class Embedder(Protocol):
  """A frozen dataclass of plain values, so that it can be part of a stage's arguments."""

  def fit(self, texts: Iterable[str], folder: Path) -> None:
    """Learns what it needs of the database and writes it to `folder`, once per database."""

  def load(self, folder: Path) -> EmbedTexts:
    """Returns the function that embeds, with what `fit` wrote."""


class EmbedTexts(Protocol):
  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Unit vectors [len(texts), S] float32; the zero vector for a text without any word."""


def normalize(x_MS: np.ndarray) -> np.ndarray:
  """Rows scaled to length 1; zero rows stay zero."""
  length_M1 = np.linalg.norm(x_MS, axis=1, keepdims=True)
  return (x_MS / np.maximum(length_M1, 1e-12)).astype(np.float32)

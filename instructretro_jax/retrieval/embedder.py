"""What turns texts into search vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np


class Embedder(Protocol):
  """A frozen dataclass of plain values, so that it can be part of a stage's arguments."""

  def fit(self, texts: Iterable[str], folder: Path) -> None:
    """Learns what it needs of the database and writes it to `folder`; nothing if it is there."""

  def load(self, folder: Path) -> EmbedTexts:
    """The function that embeds chunks and queries alike, with what `fit` wrote to `folder`."""


class EmbedTexts(Protocol):
  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Vectors [len(texts), S] float32 of length 1, or 0 where a text has nothing to go by."""


def normalize(x_MS: np.ndarray) -> np.ndarray:
  """Rows scaled to length 1 as float32; zero rows stay zero."""
  length_M1 = np.linalg.norm(x_MS, axis=1, keepdims=True)
  return (x_MS / np.maximum(length_M1, 1e-12)).astype(np.float32)

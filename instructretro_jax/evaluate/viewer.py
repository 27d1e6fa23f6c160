"""Passages for the report: what retrieval gained at each token, beside the neighbours it read."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from instructretro_jax.retrieval.neighbours import NeighbourTable
from instructretro_jax.text.chunks import ChunkStore
from instructretro_jax.text.tokens import Vocabulary, pieces

_MIN_SHARED = 4  # tokens of a run worth marking
_CHUNKS_SHOWN = 4  # of each passage


@dataclasses.dataclass(frozen=True)
class Provenance:
  """Where passages and neighbours come from."""

  heldout: ChunkStore
  train: ChunkStore
  table: NeighbourTable
  num_neighbours: int


def passages(
  batch: dict[str, np.ndarray],
  gain_BL: np.ndarray,
  count: int,
  provenance: Provenance,
  vocab: Vocabulary,
) -> list[dict[str, Any]]:
  """The first chunks of evenly spread sequences, JSON-like.

  `gain_BL` is the log-probability of each target with retrieval minus without; it is shown at the
  target's own place, so it moves on by one.
  """
  B, L = batch['tokens'].shape
  N = batch['chunk_ids'].shape[1]
  C = L // N
  shown = []
  for b in np.unique(np.linspace(0, B - 1, count).astype(int)):
    gains = [None, *(float(g) if m else None for g, m in zip(gain_BL[b], batch['loss_mask'][b]))]
    first = int(batch['chunk_ids'][b, 0])
    origin = provenance.heldout.provenance(int(provenance.heldout.document[first]))
    chunks = []
    for n in range(min(_CHUNKS_SHOWN, N)):
      chunk = int(batch['chunk_ids'][b, n])
      if chunk < 0:
        break
      length = int(provenance.heldout.length[chunk])
      tokens = batch['tokens'][b, n * C : n * C + length]
      following = batch['tokens'][b, (n + 1) * C : (n + 2) * C]
      chunks.append(
        {
          'tokens': pieces(vocab, tokens),
          'gain': [g if g is None else round(g, 3) for g in gains[n * C : n * C + length]],
          'neighbours': _neighbours(chunk, following, provenance, vocab),
        }
      )
    shown.append({'id': origin['id'], 'source': origin['source'], 'chunks': chunks})
  return shown


def _neighbours(
  chunk: int, following: np.ndarray, provenance: Provenance, vocab: Vocabulary
) -> list[dict[str, Any]]:
  found = []
  ids = provenance.table.ids(np.array([chunk]), provenance.num_neighbours)[0]
  for i in ids[ids >= 0]:
    tokens, mask = provenance.train.neighbour_tokens(np.array([i]), vocab.pad_id)
    tokens = tokens[0][mask[0]]
    texts = pieces(vocab, tokens)
    ends = np.cumsum([len(text) for text in texts]).tolist()
    spans = shared_spans(tokens.tolist(), following.tolist())
    marked = [[ends[low - 1] if low else 0, ends[high - 1]] for low, high in spans]
    origin = provenance.train.provenance(int(provenance.train.document[i]))
    found.append({'source': origin['id'], 'text': ''.join(texts), 'shared': marked})
  return found


def shared_spans(text: list[int], other: list[int]) -> list[tuple[int, int]]:
  """Ranges of `text` that are covered by runs of 4 or more tokens that `other` has too."""
  grams = {tuple(other[i : i + _MIN_SHARED]) for i in range(len(other) - _MIN_SHARED + 1)}
  spans: list[tuple[int, int]] = []
  for start in range(len(text) - _MIN_SHARED + 1):
    if tuple(text[start : start + _MIN_SHARED]) in grams:
      end = start + _MIN_SHARED
      if spans and start <= spans[-1][1]:
        spans[-1] = (spans[-1][0], end)
      else:
        spans.append((start, end))
  return spans

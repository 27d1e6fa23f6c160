"""The index stage: exact for a small database, ScaNN for a large one, recall measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from instructretro_jax import manifest
from instructretro_jax.array_store import Array
from instructretro_jax.retrieval.index import ExactIndex, Index, recall_at
from instructretro_jax.stage import Stage

_KIND = 'index.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildIndex(Stage):
  """Indexes the embeddings of the train split.

  Attributes:
    exact_below: databases with fewer chunks are searched exactly.
    recall_queries: held-out chunks on which recall against exact search is measured.
  """

  name: str = 'index'
  embeddings: str = 'embeddings'
  exact_below: int = 10_000
  recall_queries: int = 500

  def reads(self) -> tuple[str, ...]:
    return (self.embeddings,)

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    vectors_MS = Array(root / self.embeddings, 'train')[:]
    exact = ExactIndex(vectors_MS)
    kind = 'exact' if len(vectors_MS) < self.exact_below else 'scann'
    if kind == 'exact':
      exact.save(folder / kind)
    else:
      from instructretro_jax.retrieval.scann_index import ScannIndex  # only if it is needed

      ScannIndex.build(vectors_MS).save(folder / kind)
    manifest.write_text(folder / _KIND, json.dumps({'kind': kind}))
    queries = Array(root / self.embeddings, 'heldout')
    queries_QS = queries[np.linspace(0, len(queries) - 1, self.recall_queries).astype(int)]
    found, _ = open_index(folder).search(queries_QS, 10)
    truth, _ = exact.search(queries_QS, 10)
    recall = {f'recall@{k}': round(recall_at(k, found, truth), 4) for k in (1, 2, 10)}
    return {'kind': kind, 'vectors': len(vectors_MS), **recall}


def open_index(folder: Path) -> Index:
  """The index of a finished stage."""
  kind = json.loads((folder / _KIND).read_text())['kind']
  if kind == 'exact':
    return ExactIndex.load(folder / kind)
  from instructretro_jax.retrieval.scann_index import ScannIndex

  return ScannIndex.load(folder / kind)

"""ScaNN behind the Index interface, its parameters chosen from the size of the database."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import scann

from instructretro_jax.pipeline.local_copy import local
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.pipeline.progress import Bar
from instructretro_jax.pipeline.quiet import without_native_notes
from instructretro_jax.retrieval.index import best_of

MIN_VECTORS = 16  # the codes of hashing have 4 bits
_REORDERED = 200  # candidates re-scored exactly, or 3 k where that is more
_QUERIES_PER_BLOCK = 4096


@dataclasses.dataclass(frozen=True)
class ScannParameters:
  """How a database is partitioned, hashed and re-scored (Guo et al. 2020, arXiv 1908.10396)."""

  num_leaves: int
  num_leaves_to_search: int
  dims_per_block: int = 2  # a 4-bit code for so many dimensions
  anisotropic_threshold: float = 0.2  # for unit vectors; weighs errors along the vector more


def choose_parameters(num_vectors: int) -> ScannParameters:
  """sqrt(M) leaves, so that choosing leaves and scanning one cost the same; a third searched.

  On 50 k and 41 k chunks of API pages (idf-weighted word vectors, 384 wide) recall@2 against exact
  search was 0.96 and 0.95 with a quarter of the leaves, 0.98 with a third, 0.99 with half;
  re-scoring more than 100 candidates changed nothing.
  """
  num_leaves = max(1, round(num_vectors**0.5))
  return ScannParameters(num_leaves, min(num_leaves, max(16, -(-num_leaves // 3))))


class ScannIndex:
  """Approximate search. The same vectors give the same index, bit for bit, on one kind of CPU."""

  def __init__(self, searcher: scann.scann_ops_pybind.ScannSearcher):
    self._searcher = searcher
    self._num_vectors = searcher.size()

  @classmethod
  def build(cls, vectors_MS: np.ndarray, parameters: ScannParameters | None = None) -> ScannIndex:
    """As Index.build. Raises ValueError if there are fewer than MIN_VECTORS."""
    if len(vectors_MS) < MIN_VECTORS:
      raise ValueError(f'{len(vectors_MS)} vectors: ScaNN needs {MIN_VECTORS}; use the exact index')
    p = parameters or choose_parameters(len(vectors_MS))
    vectors_MS = np.ascontiguousarray(vectors_MS, np.float32)
    builder = scann.scann_ops_pybind.builder(vectors_MS, 20, 'dot_product')
    # Deterministic training takes both: k-means++ (ScaNN's random start has no seed) and one
    # thread (with several, the order in which they finish decides the sums).
    builder = builder.set_n_training_threads(1).tree(
      num_leaves=p.num_leaves,
      num_leaves_to_search=p.num_leaves_to_search,
      training_sample_size=min(len(vectors_MS), 100 * p.num_leaves),
      random_init=False,
    )
    builder = builder.score_ah(
      p.dims_per_block, anisotropic_quantization_threshold=p.anisotropic_threshold
    )
    with without_native_notes():  # on the sizes of its samples
      return cls(builder.reorder(_REORDERED).build())

  def search(self, queries_QS: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """As Index.search; fewer than k where the leaves searched hold fewer."""
    queries_QS = np.ascontiguousarray(queries_QS, np.float32)
    Q = len(queries_QS)
    ids_QK, scores_QK = np.full((Q, k), -1, np.int64), np.full((Q, k), -np.inf, np.float32)
    blocks = range(0, Q, _QUERIES_PER_BLOCK)
    for start in Bar(blocks, desc='ScaNN search', disable=len(blocks) < 2, leave=False):
      block = slice(start, start + _QUERIES_PER_BLOCK)
      ids_QK[block], scores_QK[block] = self._search_block(queries_QS[block], k)
    return ids_QK, scores_QK

  def _search_block(self, queries_QS: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    found, scores = self._searcher.search_batched_parallel(
      queries_QS,
      final_num_neighbors=min(k, self._num_vectors),
      pre_reorder_num_neighbors=min(max(_REORDERED, 3 * k), self._num_vectors),
    )
    found, scores = np.asarray(found, np.int64), np.asarray(scores, np.float32)
    rows, columns = np.nonzero(np.isfinite(scores))  # nan where the leaves searched held fewer
    return best_of(rows, found[rows, columns], scores[rows, columns], len(queries_QS), k)

  def save(self, folder: Path) -> None:
    """Writes the searcher's files to a new folder."""
    folder.mkdir(parents=True)
    try:
      self._searcher.serialize(str(folder), relative_path=True)  # so that it may be moved
    except RuntimeError as error:
      raise StageError(
        f'{folder} cannot be written ({error}): make room or correct the rights, and start again'
      ) from error

  @classmethod
  def load(cls, folder: Path) -> ScannIndex:
    """The index that `save` wrote."""
    return cls(scann.scann_ops_pybind.load_searcher(str(local(folder))))

"""ScaNN behind the Index interface, its parameters chosen from the size of the database."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scann

_REORDERED = 200  # candidates re-scored exactly
_PARTITION_ABOVE = 100_000  # vectors; ScaNN's own advice


class ScannIndex:
  """Asymmetric hashing with exact re-scoring (Guo et al. 2020), partitioned if the database is large.

  Hashing: blocks of 2 dimensions, anisotropic threshold 0.2; 200 candidates are re-scored. Above
  100,000 vectors a k-means tree of sqrt(M) leaves narrows the search to a quarter of them. Building
  without the tree gives the same index every time; ScaNN's k-means does not, so an index with a
  tree is reproducible as a file and not as a computation.
  """

  def __init__(self, searcher: scann.scann_ops_pybind.ScannSearcher):
    self._searcher = searcher

  @classmethod
  def build(cls, vectors_MS: np.ndarray, partition_above: int = _PARTITION_ABOVE) -> ScannIndex:
    builder = scann.scann_ops_pybind.builder(vectors_MS, 20, 'dot_product')
    if len(vectors_MS) > partition_above:
      num_leaves = round(len(vectors_MS) ** 0.5)
      builder = builder.tree(
        num_leaves=num_leaves,
        num_leaves_to_search=-(-num_leaves // 4),
        training_sample_size=min(len(vectors_MS), 250_000),
        spherical=True,
      )
    builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(_REORDERED)
    # one thread: the order in which threads finish would decide the sums of the training
    return cls(builder.set_n_training_threads(1).build())

  def search(self, queries_QS: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    reordered = max(k, _REORDERED)
    ids, scores = self._searcher.search_batched(
      queries_QS.astype(np.float32), final_num_neighbors=k, pre_reorder_num_neighbors=reordered
    )
    ids_Qk = np.where(np.isfinite(scores), np.asarray(ids, np.int64), -1)
    return ids_Qk, np.where(ids_Qk >= 0, scores, -np.inf).astype(np.float32)

  def save(self, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    self._searcher.serialize(str(folder), relative_path=True)

  @classmethod
  def load(cls, folder: Path) -> ScannIndex:
    return cls(scann.scann_ops_pybind.load_searcher(str(folder)))

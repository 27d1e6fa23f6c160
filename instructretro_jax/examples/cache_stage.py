"""The stage that writes joined examples (text with its neighbours) as sequential files."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from instructretro_jax.examples import cached
from instructretro_jax.examples.tasks import LanguageModel
from instructretro_jax.pipeline import manifest
from instructretro_jax.pipeline.stage import Stage

_BLOCK = 64  # examples that are joined at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache(Stage):
  """Writes the first examples of a stream by Apache Beam, a shard a worker.

  An arm reads them instead of joining its own where its task names this stage as `cache`; seqio
  reads them by `data.cache.seqio_task`. They take much more room than the stores they come from:
  each example has its own copy of its neighbours.

  Attributes:
    task: whose examples, those of its training split.
    num_examples: from the first of the stream; an arm with `continue_data` begins further on.
    data_seed: of the arms that read them; decides the order.
    num_shards: files.
    beam_options: of the pipeline, as on a Beam command line. The workers must see the run's folder.
  """

  name: str = 'cache'
  task: LanguageModel
  num_examples: int
  data_seed: int = 0
  num_shards: int = 16
  beam_options: tuple[str, ...] = ('--runner=DirectRunner',)

  def reads(self) -> tuple[str, ...]:
    """The stages whose folders `build` reads."""
    return self.task.reads()

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    """Writes the shards by Apache Beam."""
    if not 0 < self.num_shards <= self.num_examples:
      raise manifest.StageError(
        f'{self.name}: {self.num_examples} examples do not fill {self.num_shards} shards'
      )
    import apache_beam as beam  # here, since it takes seconds
    from apache_beam.options.pipeline_options import PipelineOptions

    with beam.Pipeline(options=PipelineOptions(list(self.beam_options))) as pipeline:
      shards = pipeline | beam.Create(range(self.num_shards)) | beam.Reshuffle()
      _ = shards | beam.Map(functools.partial(_write, self, root, folder))
    source = self.task.sequences(root, cached.SPLIT)
    example = {name: array[0] for name, array in source.examples(np.zeros(1, np.int64)).items()}
    cached.finish(folder, self.num_shards, self.num_examples, example)
    return {'examples': self.num_examples, 'examples_of_an_epoch': len(source)}


def _write(stage: Cache, root: Path, folder: Path, shard: int) -> None:
  """Writes one shard, on whatever machine Beam runs it."""
  source = stage.task.sequences(root, cached.SPLIT)
  first, stop = (n * stage.num_examples // stage.num_shards for n in (shard, shard + 1))

  def examples() -> Iterator[dict[str, np.ndarray]]:
    for start in range(first, stop, _BLOCK):
      positions = np.arange(start, min(start + _BLOCK, stop))
      block = source.examples(source.ids(stage.data_seed, positions))
      for row in range(len(positions)):
        yield {name: array[row] for name, array in block.items()}

  cached.write_shard(folder, shard, stage.num_shards, examples())

"""Stage folders, chunks and neighbours in words."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from instructretro_jax.pipeline import manifest
from instructretro_jax.retrieval.neighbours import NeighbourTable
from instructretro_jax.text import vocabulary
from instructretro_jax.text.chunks import ChunkStore, chunk_text


def describe_stage(folder: Path) -> str:
  """What a finished stage was asked and what it counted."""
  found = manifest.read_manifest(folder)
  parameters = [describe_parameters(folder)] if (folder / 'checkpoints').exists() else []
  size = sum(entry['bytes'] for entry in found.files.values())
  return '\n'.join(
    [
      f'{found.plan.stage} {folder.name!r}: {len(found.files)} checksummed files, {size:,} bytes',
      f'fingerprint {found.fingerprint}',
      f'arguments {json.dumps(found.plan.arguments, indent=1)}',
      f'counts {json.dumps(found.counts, indent=1)}',
      *parameters,
    ]
  )


def describe_parameters(folder: Path) -> str:
  """Parameters of a checkpoint by group, and the model's configuration."""
  from instructretro_jax.model.param_groups import PARTS, part_of  # loads JAX: only if used
  from instructretro_jax.train.checkpoint import Checkpoint

  checkpoint = Checkpoint(folder)
  counts = dict.fromkeys(PARTS, 0)
  for path, shape in checkpoint.param_shapes().items():
    counts[part_of(path)] += math.prod(shape)
  total = sum(counts.values())
  lines = [f'parameters {total:,}']
  lines += [f'  {part:24}{n:16,}{n / total:8.1%}' for part, n in counts.items() if n]
  for name in ('model', 'execution'):
    lines.append(f'{name} {json.dumps(checkpoint.record[name], indent=1)}')
  return '\n'.join(lines)


def describe_chunk(root: Path, split: str, chunk: int, num_neighbours: int = 2) -> str:
  """A chunk of a run, the one after it, and its neighbours with their continuations."""
  vocab = vocabulary.load(root / 'vocabulary')
  store, database = ChunkStore(root / 'chunks', split), ChunkStore(root / 'chunks', 'train')
  if not 0 <= chunk < len(store):
    raise manifest.StageError(f'the {split} split has chunks 0 to {len(store) - 1}, no {chunk}')
  origin = store.provenance(int(store.document[chunk]))
  lines = [f'{split} chunk {chunk} of {origin["id"]}:', chunk_text(store, vocab, chunk)]
  if chunk + 1 < len(store) and store.document[chunk + 1] == store.document[chunk]:
    lines += ['followed by:', chunk_text(store, vocab, chunk + 1)]
  table = NeighbourTable(root / 'neighbours', split)
  ids = table.ids(np.array([chunk]), num_neighbours)[0]
  scores = table.scores(np.array([chunk]), num_neighbours)[0]
  for i, score in zip(ids[ids >= 0], scores):
    tokens, mask = database.neighbour_tokens(np.array([i]), vocab.pad_id)
    origin = database.provenance(int(database.document[i]))
    lines += [f'neighbour {i} of {origin["id"]}, score {score:.3f}:']
    lines += [vocab.decode(tokens[0][mask[0]].tolist())]
  return '\n'.join(lines)

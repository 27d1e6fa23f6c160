"""Held-out perplexity of every arm: with its neighbours, without, and with random ones."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from instructretro_jax.array_types import Params
from instructretro_jax.evaluate import viewer
from instructretro_jax.examples.heldout import heldout_batches, parts
from instructretro_jax.examples.tasks import LanguageModel
from instructretro_jax.model.param_groups import has_retrieval
from instructretro_jax.model.retro import Retro
from instructretro_jax.model.sharding import ONE_DEVICE, MeshConfig
from instructretro_jax.pipeline import manifest
from instructretro_jax.pipeline.fields import MAY_BE_0
from instructretro_jax.pipeline.progress import Bar
from instructretro_jax.pipeline.stage import Stage
from instructretro_jax.report.categories import KINDS, RUN_RANGES
from instructretro_jax.retrieval.neighbours import NeighbourTable
from instructretro_jax.retrieval.overlap import copyable, shared_run
from instructretro_jax.text import vocabulary
from instructretro_jax.text.chunks import ChunkStore
from instructretro_jax.train.checkpoint import Checkpoint
from instructretro_jax.train.mesh import evaluation_mesh, note_whole
from instructretro_jax.train.step import losses_of_batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Perplexity(Stage):
  """Measures held-out perplexity with own neighbours, without any, and with random ones.

  By kind of token, and by how much the neighbours share with what they serve.
  Writes results.json (rows), sequences.json (what the rows sum, by sequence: arms are compared pair
  by pair) and passages.json (for the viewer of the report).

  Attributes:
    arms: training stages; those without an encoder are evaluated without neighbours only.
    num_sequences: held-out sequences, spread evenly over the split.
    mesh: of the devices of process 0 that share a checkpoint: `tensor` of them each parameter.
    viewed_arm: the arm whose gain, token by token, the viewer shows.
  """

  name: str = 'perplexity'
  arms: tuple[str, ...]
  viewed_arm: str
  task: LanguageModel
  num_sequences: int
  batch_size: int = 8
  mesh: MeshConfig = ONE_DEVICE
  num_viewed: int = dataclasses.field(default=6, metadata=MAY_BE_0)
  seed: int = 0

  only_how: ClassVar[frozenset[str]] = frozenset({'batch_size'})

  def __post_init__(self):
    if self.viewed_arm not in self.arms:
      raise ValueError(f'viewed_arm={self.viewed_arm!r} is none of the arms {self.arms}')

  def reads(self) -> tuple[str, ...]:
    """The stages whose folders `build` reads."""
    return (*self.task.reads(), *self.arms)

  def build(self, root: Path, folder: Path) -> dict[str, Any]:
    """Writes perplexities by arm, neighbours and kind of token.

    Raises StageError if the viewed arm has no encoder, so that nothing was gained at any token.
    """
    if not Checkpoint(root / self.viewed_arm).has_encoder():
      raise manifest.StageError(
        f'{root / self.viewed_arm} has no encoder: name an arm that has one in viewed_arm'
      )
    vocab = vocabulary.load(root / self.task.vocabulary)
    batches = heldout_batches(self.task, root, self.num_sequences, self.seed)
    own = batches['own']
    masks = token_categories(own)
    store = ChunkStore(root / self.task.chunks, 'heldout')
    bytes_BL = target_bytes(store, own, vocab)
    rows, sums, viewed = [], [], {}
    mesh = evaluation_mesh(self.mesh, self.batch_size)
    for arm in Bar(self.arms, desc=self.name, unit='arm'):
      model, params = Checkpoint(root / arm).load_for_use(mesh)
      note_whole(model.config, has_retrieval(params), mesh)
      kinds = tuple(KINDS) if has_retrieval(params) else ('off',)
      for kind in kinds:
        with jax.set_mesh(mesh):
          nats_BL = _token_nats(model, params, batches[kind], kind != 'off', self.batch_size)
        if arm == self.viewed_arm:
          viewed[kind] = nats_BL
        for category, mask_BL in masks.items():
          row = _row(nats_BL, mask_BL, bytes_BL if category == 'all' else None)
          if row is not None:
            names = {'arm': arm, 'neighbours': kind, 'category': category}
            rows.append({**names, **row})
            sums.append({**names, **_sums(nats_BL, mask_BL)})
    manifest.write_text(folder / 'results.json', json.dumps(rows, indent=1))
    manifest.write_text(folder / 'sequences.json', json.dumps(sums))
    passages = viewer.passages(
      own, viewed['off'] - viewed['own'], self.num_viewed, self._provenance(root), vocab
    )
    manifest.write_text(folder / 'passages.json', json.dumps(passages))
    return {
      'sequences': len(own['tokens']),
      'tokens': int(own['loss_mask'].sum()),
      'rows': len(rows),
    }

  def _provenance(self, root: Path) -> viewer.Provenance:
    heldout, train = (ChunkStore(root / self.task.chunks, s) for s in ('heldout', 'train'))
    table = NeighbourTable(root / self.task.neighbours, 'heldout')
    return viewer.Provenance(heldout, train, table, self.task.num_neighbours)


def target_bytes(
  store: ChunkStore, batch: dict[str, np.ndarray], vocab: vocabulary.Vocabulary
) -> np.ndarray:
  """UTF-8 bytes of text that each target stands for, [B, L] int64; 0 where there is no loss."""
  chunk_ids = batch['chunk_ids']
  last = chunk_ids[:, -1:] + 1  # its first token is the last target
  after = np.where((chunk_ids[:, -1:] >= 0) & (last < len(store)), last, -1)
  sizes = store.token_bytes(np.concatenate([chunk_ids, after], axis=1), vocab)
  B, L = batch['tokens'].shape
  return sizes.reshape(B, -1)[:, 1 : L + 1] * (batch['loss_mask'] > 0)


def token_categories(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Which targets belong to which kind, bool [B, L] each.

  'copyable': the trigram that ends in the target stands in the neighbours that serve it; 'other':
  it does not, though there are neighbours; 'first_chunk': no neighbour serves the target;
  'run_a_b': the longest run that the serving neighbours share with the target's chunk.
  """
  has_target = batch['loss_mask'] > 0
  B, L = batch['tokens'].shape
  N = batch['chunk_ids'].shape[1]
  C = L // N
  segments = batch['segments'].reshape(B, N, C)
  mask_BNKR = batch['neighbour_mask']
  # neighbours of chunk n - 1 serve chunk n if both are of one document
  continues = (segments[:, 1:, 0] == segments[:, :-1, 0]) & (segments[:, 1:, 0] > 0)
  is_served = np.zeros((B, N), bool)
  is_served[:, 1:] = continues & mask_BNKR[:, :-1].any(axis=(2, 3))
  runs = np.zeros((B, N), int)
  chunk = batch['tokens'].reshape(B, N, C)[:, 1:].reshape(-1, C)
  real = segments[:, 1:].reshape(-1, C) > 0
  served_by = batch['neighbours'][:, :-1].reshape(-1, *mask_BNKR.shape[2:])
  serving_mask = mask_BNKR[:, :-1].reshape(served_by.shape)
  runs[:, 1:] = shared_run(chunk, real, served_by, serving_mask).reshape(B, N - 1)
  # a target at position p is token p + 1, of chunk (p + 1) // C
  of_target = np.minimum((np.arange(L) + 1) // C, N - 1)
  served_BL = is_served[:, of_target] & (np.arange(L) + 1 < L)
  run_BL = runs[:, of_target]
  can_copy = np.zeros((B, L), bool)  # the target of the last position is of the next sequence
  can_copy[:, :-1] = copyable(
    batch['tokens'], batch['segments'], batch['neighbours'], mask_BNKR, C
  )[:, 1:]
  categories = {
    'all': has_target,
    'copyable': has_target & served_BL & can_copy,
    'other': has_target & served_BL & ~can_copy,
    'first_chunk': has_target & ~served_BL,
  }
  for low, high in RUN_RANGES:
    in_range = (run_BL >= low) & (run_BL <= high)
    categories[f'run_{low}_{high}'] = has_target & served_BL & in_range
  return categories


def _token_nats(
  model: Retro, params: Params, batch: dict[str, np.ndarray], is_open: bool, batch_size: int
) -> np.ndarray:
  gate = 1.0 if is_open else 0
  losses = _compiled_losses(model, gate)
  found = [np.asarray(losses(params, part)) for part in parts(batch, batch_size, is_open)]
  return np.concatenate(found)[: len(batch['tokens'])]


@functools.lru_cache(maxsize=4)
def _compiled_losses(model: Retro, gate: float) -> Callable[..., jax.Array]:
  """Arms of one model share what is compiled."""
  return jax.jit(lambda params, part: losses_of_batch(model, params, part, gate))


def _sums(nats_BL: np.ndarray, mask_BL: np.ndarray) -> dict[str, list[float]]:
  """Nats and tokens of each sequence."""
  nats_B = (nats_BL * mask_BL).sum(axis=1)
  return {'nats': [round(x, 3) for x in nats_B.tolist()], 'tokens': mask_BL.sum(axis=1).tolist()}


def _row(
  nats_BL: np.ndarray, mask_BL: np.ndarray, bytes_BL: np.ndarray | None
) -> dict[str, Any] | None:
  """Mean and 95 % interval; sequences, not tokens, are taken as independent (ratio estimator)."""
  nats_BL = nats_BL.astype(np.float64)  # float32 would round the sums to seven digits
  sums_B, counts_B = (nats_BL * mask_BL).sum(axis=1), mask_BL.sum(axis=1)
  tokens = int(counts_B.sum())
  if not tokens:
    return None
  mean = float(sums_B.sum() / tokens)
  residual_B = sums_B - mean * counts_B
  n = len(sums_B)
  error = math.sqrt(n / max(1, n - 1) * float((residual_B**2).sum())) / tokens
  row = {
    'tokens': tokens,
    'nats': round(mean, 5),
    'perplexity': round(math.exp(mean), 4),
    'low': round(math.exp(mean - 1.96 * error), 4),
    'high': round(math.exp(mean + 1.96 * error), 4),
    'bits_per_byte': None,
  }
  if bytes_BL is not None:
    row['bits_per_byte'] = float(sums_B.sum() / math.log(2) / bytes_BL.sum())
  return row

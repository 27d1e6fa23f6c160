"""From the folder of a checkpoint to what decodes with it."""

from __future__ import annotations

from pathlib import Path

from instructretro_jax.inference.sampler import BATCH_SIZE, Sampler
from instructretro_jax.model.sharding import ONE_DEVICE, MeshConfig
from instructretro_jax.pipeline import manifest
from instructretro_jax.retrieval.retriever import Retriever
from instructretro_jax.text import vocabulary
from instructretro_jax.train.checkpoint import Checkpoint
from instructretro_jax.train.mesh import evaluation_mesh, note_whole


def load_sampler(
  folder: Path,
  *,
  with_encoder: bool = True,
  retriever: Retriever | None = None,
  batch_size: int = BATCH_SIZE,
  mesh: MeshConfig = ONE_DEVICE,
) -> Sampler:
  """The sampler of a training stage's folder, or of an imported checkpoint's.

  Args:
    with_encoder: False reads no parameter of encoder and cross-attention; every gate is 0 then.
    mesh: of devices of this process.

  Raises StageError if there is no checkpoint, or not the vocabulary that it was trained with, or a
  batch cannot be split over the mesh.
  """
  devices, checkpoint = evaluation_mesh(mesh, batch_size), Checkpoint(folder)
  note_whole(checkpoint.config, with_encoder and checkpoint.has_encoder(), devices)
  model, params = checkpoint.load_for_use(devices, with_encoder)
  return Sampler(model, params, find_vocabulary(folder), retriever, batch_size, devices)


def find_vocabulary(folder: Path) -> vocabulary.Vocabulary:
  """The vocabulary of a checkpoint: in its own folder if imported, else in that of the run.

  Raises StageError if it is not there, or is another than that of the training.
  """
  expected = Checkpoint(folder).record['vocabulary']
  for place in (folder, folder.parent / 'vocabulary'):
    names = (vocabulary.HUGGING_FACE_FILE, vocabulary.SENTENCEPIECE_FILE)
    if any((place / name).exists() for name in names):
      vocab = vocabulary.load(place)
      if vocabulary.fingerprint(vocab) == expected:
        return vocab
      raise manifest.StageError(
        f'{folder} was trained with another vocabulary than that of {place}'
      )
  raise manifest.StageError(
    f'neither {folder} nor {folder.parent / "vocabulary"} has a vocabulary: keep a checkpoint in '
    'its run folder'
  )

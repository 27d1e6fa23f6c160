"""A run folder with an index and an untrained arm, and the same arm as imported weights."""

import dataclasses
import shutil

from flax import linen as nn
from flax import traverse_util
import jax
import numpy as np
import pytest

from instructretro_jax.pipeline import stage
from instructretro_jax.retrieval.index_stage import BuildIndex
from instructretro_jax.text import vocabulary
from instructretro_jax.train.checkpoint_writer import write_checkpoint
from instructretro_jax.train.lazy_params import LazyArray
from instructretro_jax.train.state import init_params
from tests.model.test_retro import CONFIG
from tests.retrieval.fixtures import CHUNK_LEN

RUN_CONFIG = dataclasses.replace(
  CONFIG,
  chunk_len=CHUNK_LEN,
  decoder=dataclasses.replace(CONFIG.decoder, vocab_size=340, num_layers=2, max_len=200),
  cross_attention_layers=(1,),
)


@pytest.fixture(scope='session')
def built_run_with_arm(tmp_path_factory, built_run_folder):
  """What `run_with_arm` copies; not to be changed.

  Root with index, the arm `retro_fit`, and `imported`, a decoder with its own vocabulary.
  """
  run_folder = shutil.copytree(built_run_folder, tmp_path_factory.mktemp('with_arm') / 'root')
  stage.run(BuildIndex(recall_queries=4), run_folder)
  record = {'vocabulary': vocabulary.fingerprint(vocabulary.load(run_folder / 'vocabulary'))}
  for name, with_retrieval in (('retro_fit', True), ('imported', False)):
    params = nn.unbox(jax.jit(lambda w=with_retrieval: init_params(RUN_CONFIG, 0, w))())
    flat = traverse_util.flatten_dict(jax.tree.map(np.asarray, params), sep='/')
    lazy = {path: LazyArray(x.shape, x.dtype, lambda x=x: x) for path, x in flat.items()}
    write_checkpoint(run_folder / name, RUN_CONFIG, lazy, record)
  vocabulary_file = run_folder / 'vocabulary' / vocabulary.SENTENCEPIECE_FILE
  shutil.copy(vocabulary_file, run_folder / 'imported')
  return run_folder


@pytest.fixture
def run_with_arm(tmp_path, built_run_with_arm):
  """A copy of `built_run_with_arm` for each test."""
  return shutil.copytree(built_run_with_arm, tmp_path / 'root')

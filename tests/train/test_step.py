"""The step: parts of a batch one after the other are the batch."""

import jax
import jax.numpy as jnp
import numpy as np

from instructretro_jax.model.retro import Retro
from instructretro_jax.model.sharding import MeshConfig, make_mesh, put_batch
from instructretro_jax.train.multipliers import split_trainable
from instructretro_jax.train.optimizer import AdamW
from instructretro_jax.train.reading import GATE, RELATIVE_RMS
from instructretro_jax.train.step import TrainState, make_train_step
from tests.model.test_retro import CONFIG, init, make_inputs


def make_batch(batch_size):
  tokens, segments, neighbours, mask = make_inputs(batch=batch_size)
  loss_mask = np.random.default_rng(1).random(tokens.shape) < 0.7  # rows differ in their weight
  return {
    'tokens': tokens,
    'targets': np.roll(tokens, -1, axis=1),
    'segments': segments,
    'loss_mask': loss_mask.astype(np.float32),
    'neighbours': neighbours,
    'neighbour_mask': mask,
  }


def one_step(num_microbatches, batch):
  params = init(CONFIG, make_inputs())
  rates = (('head|table', 0.0),)
  trainable, frozen = split_trainable(params, rates)
  optimizer = AdamW(learning_rate=0.1, warmup_fraction=0.0).make(10, trainable)
  state = TrainState(jnp.ones((), jnp.int32), trainable, frozen, optimizer.init(trainable))
  step = jax.jit(make_train_step(Retro(CONFIG), optimizer, 1.0, num_microbatches))
  return step(step(state, batch)[0], batch)  # the first step is at rate 0


def test_microbatches_add_up_to_the_batch_on_any_mesh():
  batch = make_batch(8)
  expected_state, expected = one_step(1, batch)
  mesh = make_mesh(MeshConfig(data=4), jax.devices()[:4])
  with jax.set_mesh(mesh):
    state, metrics = one_step(2, put_batch(batch, mesh, 8))
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4)  # Adam divides by small moments
  assert metrics[GATE] == 1 and metrics[RELATIVE_RMS] > 0
  jax.tree.map(close, metrics, expected)
  jax.tree.map(close, state.params, expected_state.params)

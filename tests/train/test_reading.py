"""What the stream gets from neighbours, and how long a step takes at least."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from instructretro_jax.model.execution import Execution
from instructretro_jax.model.layer_groups import stack_layers
from instructretro_jax.model.retro import Retro
from instructretro_jax.train.metrics import TrainLog
from instructretro_jax.train.optimizer import AdamW
from instructretro_jax.train.reading import GATE, RELATIVE_RMS, reading_metrics
from instructretro_jax.train.state import abstract_params, abstract_state
from instructretro_jax.train.step import loss_and_reading, loss_of_batch
from instructretro_jax.train.utilisation import secs_at_peak, step_flops
from tests.model.test_layer_groups import with_decoder
from tests.model.test_retro import init
from tests.train.test_step import make_batch

LAYERS = (0, 1, 2)
DEEP = dataclasses.replace(
  with_decoder(num_layers=3, cross_attention_layers=LAYERS),  # the last two are a stack
  encoder_layers=1,
)
STACKED = Retro(DEEP, Execution(scan_layers=True, remat='save_nothing'))


@pytest.fixture(scope='module')
def given():
  """Parameters, a batch and the gate of each row."""
  batch = make_batch(4)
  inputs = [batch[name] for name in ('tokens', 'segments', 'neighbours', 'neighbour_mask')]
  return init(DEEP, inputs), batch, inputs, jnp.array([1.0, 0.0, 0.5, 1.0])


def test_what_each_layer_reads_is_measured(given):
  params, batch, inputs, gate_B = given

  @jax.jit
  def intermediates(params):
    kept = lambda module, method: method in ('__call__', 'attend')
    asked = {'gate': gate_B, 'capture_intermediates': kept, 'mutable': ['intermediates']}
    return Retro(DEEP).apply({'params': params}, *inputs, **asked)[1]['intermediates']

  seen = intermediates(params)
  layers = [seen[f'decoder_{n}'] for n in LAYERS]
  added = [gate_B[:, None, None] * x['cross_attention']['__call__'][0] for x in layers]
  before = [x['attend'][0][0] for x in layers]
  rms = lambda x: np.sqrt(np.square(np.asarray(x, np.float64)).mean())
  expected = np.mean([rms(a) / rms(b) for a, b in zip(added, before)])
  forward = jax.jit(loss_and_reading, static_argnums=0)
  _, squares_XB2 = forward(STACKED, stack_layers(params, DEEP), batch, gate_B)
  assert squares_XB2.shape == (3, 4, 2) and not squares_XB2[:, 1, 0].any()
  found = reading_metrics(squares_XB2, gate_B)
  np.testing.assert_allclose(found[RELATIVE_RMS], expected, rtol=1e-5)
  assert found[GATE] == 0.625


@pytest.mark.slow
def test_measuring_changes_no_bit_of_loss_and_gradients(given):
  params, batch, _, gate_B = given
  arguments = STACKED, stack_layers(params, DEEP), batch, gate_B
  compiled = lambda loss, **aux: jax.jit(jax.value_and_grad(loss, 1, **aux), static_argnums=0)
  (loss, _), grads = compiled(loss_and_reading, has_aux=True)(*arguments)
  alone = compiled(loss_of_batch)(*arguments)
  jax.tree.map(np.testing.assert_array_equal, (loss, grads), alone)


def arm(dtype):
  task = SimpleNamespace(seq_len=16, num_neighbours=2)
  execution = Execution(dtype=dtype)
  return SimpleNamespace(model=DEEP, task=task, gate=1.0, batch_size=8, execution=execution)


@pytest.mark.parametrize(
  'kind, dtype, peak',
  [
    ('TPU v5 lite', 'bfloat16', 197e12),
    ('TPU v5', 'bfloat16', 459e12),
    ('NVIDIA H100 80GB HBM3', 'bfloat16', 989e12),
    ('TPU v5', 'float32', None),
    ('cpu', 'bfloat16', None),
  ],
)
def test_a_step_at_peak_is_known_of_known_devices(kind, dtype, peak):
  mesh = jax.make_mesh((1, 1, 1), ('data', 'fsdp', 'tensor'), devices=jax.devices()[:1])
  state, _ = abstract_state(abstract_params(DEEP, True, mesh), AdamW(learning_rate=1.0), 1)
  devices = np.array([SimpleNamespace(device_kind=kind)] * 4)
  found = secs_at_peak(arm(dtype), state, SimpleNamespace(devices=devices, size=4))
  assert found == (peak and pytest.approx(step_flops(arm(dtype), state, 8) / (4 * peak)))


@pytest.mark.parametrize('secs_at_peak', [None, 0.02])
def test_utilisation_is_logged_where_the_peak_is_known(tmp_path, monkeypatch, secs_at_peak):
  now = iter([0.0, 0.1])
  monkeypatch.setattr('time.monotonic', lambda: next(now, 0.1))
  log = TrainLog(
    tmp_path, 'gpt', first_step=0, num_steps=1, rates=optax.constant_schedule(1.0),
    secs_at_peak=secs_at_peak,
  )  # fmt: skip
  metrics = {name: np.float32(64) for name in ('loss', 'grad_norm', 'tokens')}
  log.add(1, metrics)
  log.add(2, metrics)
  log.close()
  (row,) = map(json.loads, (tmp_path / 'metrics.jsonl').open())
  assert row['tokens_per_s'] == 640
  assert row.get('mfu') == (secs_at_peak and 0.2)

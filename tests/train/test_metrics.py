"""What the log of an arm tells TensorBoard of its settings."""

import contextlib
import json

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.errors import OutOfRangeError
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
from tensorboard.plugins.hparams import metadata

from instructretro_jax.pipeline import manifest
from instructretro_jax.train.metrics import TrainLog

TAG = '_hparams_/session_start_info'


def plan_of(inputs, execution=(), **arguments):
  return manifest.Plan('Train', arguments, inputs, dict(execution))


def summaries(folder):
  """All values of the one event file of a folder, as TensorBoard reads them without TensorFlow."""
  [path] = folder.iterdir()
  reader = PyRecordReader_New(str(path))
  with contextlib.suppress(OutOfRangeError):
    while True:
      reader.GetNext()
      yield from Event.FromString(reader.record()).summary.value


def hyperparameters(value):
  """By name, as the page HPARAMS reads them."""
  assert value.metadata.plugin_data.plugin_name == metadata.PLUGIN_NAME
  content = value.metadata.plugin_data.content
  found = metadata.parse_session_start_info_plugin_data(content).hparams
  return {name: getattr(found[name], found[name].WhichOneof('kind')) for name in found}


def test_settings_of_an_arm_and_of_what_it_goes_back_to_are_hyperparameters(tmp_path):
  for name, plan in {
    'corpus': plan_of({'file /a.txt': 'f'}, seed=3, heldout_fraction=0.25),
    'gpt': plan_of({'corpus': 'f'}, num_steps=9, optimizer={'class': 'AdamW'}),
  }.items():
    (tmp_path / name).mkdir()
    manifest.commit(tmp_path / name, plan, {}, frozenset())
  own = {'name': 'fit', 'gate': 1.0, 'init': {'scale': None, 'layers': [1, 2]}, 'is_frozen': True}
  plan = plan_of({'gpt': 'f', 'corpus': 'f'}, {'execution.remat': 'full'}, **own)
  manifest.begin(tmp_path / 'fit', plan)
  logs = tmp_path / 'fit' / 'logs'
  log = TrainLog(logs, 'fit', first_step=0, num_steps=2, rates=lambda step: 0.1)
  with contextlib.closing(log):
    for step in (1, 2):
      log.add(step, {'loss': 4.0 - step, 'tokens': 8})
    log.add(3, {'loss': 0.0, 'tokens': 8})  # writes the one before it
  first, *others = summaries(logs / 'tensorboard')
  assert first.tag == TAG and TAG not in {value.tag for value in others}
  assert hyperparameters(first) == {
    'name': 'fit', 'gate': 1.0, 'init.layers': json.dumps([1, 2]), 'is_frozen': True,
    'execution.remat': 'full', 'gpt.num_steps': 9.0, 'gpt.optimizer.class': 'AdamW',
    'corpus.seed': 3.0, 'corpus.heldout_fraction': 0.25,
  }  # fmt: skip
  assert [value.simple_value for value in others if value.tag == 'loss'] == [3.0, 2.0]

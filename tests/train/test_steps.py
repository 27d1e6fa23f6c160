"""What happens beside the steps of an arm: checkpoints, held-out losses, traces, signals."""

import dataclasses
import os
import signal

import numpy as np
import pytest

from instructretro_jax.examples.tasks import LanguageModel
from instructretro_jax.model.retro import Retro
from instructretro_jax.pipeline import configuration, stage
from instructretro_jax.pipeline.hosts import Preempted
from instructretro_jax.train import loop
from instructretro_jax.train.heldout import HeldOut
from instructretro_jax.train.keep import Keep
from instructretro_jax.train.metrics import TrainLog
from instructretro_jax.train.step import losses_of_batch
from tests.checkpoints import load_params
from tests.train.test_going_on import arm, losses, made, root, rows  # noqa: F401, fixtures
from tests.train.test_loop import MODEL, CountingTask


def test_an_arm_whose_machine_is_taken_away_saves_and_ends_as_it_would_have(made, monkeypatch):  # noqa: F811
  whole = stage.run(arm(name='whole', num_steps=9, checkpoint_every=4), made)
  add = TrainLog.add

  def is_told(self, n, metrics):
    if n == 6:
      os.kill(os.getpid(), signal.SIGTERM)
    add(self, n, metrics)

  monkeypatch.setattr(TrainLog, 'add', is_told)
  told = arm(num_steps=9, checkpoint_every=4)
  with pytest.raises(Preempted, match='step 6 of 9 is saved'):
    stage.run(told, made)
  monkeypatch.setattr(TrainLog, 'add', add)
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
  steps = {path.name for path in (made / 'gpt' / 'checkpoints').glob('[0-9]*')}
  assert steps == {'4', '6'}
  assert stage.run(told, made).counts['params_sha256'] == whole.counts['params_sha256']
  assert losses(made / 'gpt') == losses(made / 'whole')


def test_which_checkpoints_are_kept(made):  # noqa: F811
  stage.run(arm(num_steps=7, checkpoint_every=1, keep=Keep(last=2, every=3)), made)
  steps = {path.name for path in (made / 'gpt' / 'checkpoints').glob('[0-9]*')}
  assert steps == {'3', '6', '7'}
  saved = [row['step'] for row in rows(made / 'gpt') if 'checkpoint_s' in row]
  assert saved == [2, 3, 4, 5, 6, 7]  # of the save before


@dataclasses.dataclass(frozen=True)
class Sentences:
  """Held-out sequences of a task, of which there are three."""

  neighbours: str | None = None

  def reads(self):
    return ('vocabulary',)

  def sequences(self, root, split):  # noqa: F811
    assert split == 'heldout'
    return self

  def __len__(self):
    return 3

  def examples(self, ids):
    return CountingTask().examples(200 + np.asarray(ids))


def heldout(**changes):
  return HeldOut(**{'task': Sentences(), 'every': 2, 'num_sequences': 9} | changes)


def test_held_out_losses_are_logged_and_change_nothing(made):  # noqa: F811
  plain = stage.run(arm(name='plain', num_steps=5), made)
  found = arm(num_steps=5, heldout=heldout(), keep=Keep(last=1, best=1)).build(made, made / 'gpt')
  assert found['params_sha256'] == plain.counts['params_sha256']
  measured = {r['step']: r['heldout/off'] for r in rows(made / 'gpt') if 'heldout/off' in r}
  assert list(measured) == [2, 4, 5]
  _, params, _ = load_params(made / 'gpt')
  batch = Sentences().examples([0, 1, 2])
  nats = np.asarray(losses_of_batch(Retro(MODEL), params, batch, 0.0))
  assert measured[5] == pytest.approx(nats.sum() / batch['loss_mask'].sum(), rel=1e-5)
  best = min(measured, key=measured.get)
  steps = {int(path.name) for path in (made / 'gpt' / 'checkpoints').glob('[0-9]*')}
  assert steps == {best, 5}


def test_an_arm_that_no_longer_learns_ends_and_stays_so(made, monkeypatch):  # noqa: F811
  nats = iter([3.0, 2.0, 2.5, 2.0, 9.0])
  monkeypatch.setattr(
    loop.Evaluator, 'losses', lambda self, state: {'heldout/own': next(nats), 'heldout/off': 0.0}
  )
  ending = arm(num_steps=20, heldout=heldout(patience=2))
  found = ending.build(made, made / 'gpt')
  assert found['steps'] == 8  # the evaluation of step 4 was the best
  assert found['best_heldout'] == [4, 2.0]
  again = ending.build(made, made / 'gpt')  # as after a kill before the manifest
  assert again == found and next(nats) == 9.0


def test_what_decides_when_an_arm_ends_is_part_of_it():
  asked = lambda **changes: configuration.identity(
    {'heldout': HeldOut(task=LanguageModel(seq_len=8), **changes)}
  )
  assert asked(every=3) == asked(every=4)
  assert asked(every=3, patience=1) != asked(every=4, patience=1)


def test_a_trace_of_some_steps(made, capsys):  # noqa: F811
  stage.run(arm(num_steps=4, profile=(2, 3)), made)
  assert list((made / 'gpt' / 'logs' / 'profile').rglob('*.xplane.pb'))
  assert list((made / 'gpt' / 'logs' / 'profile').rglob('perfetto_trace.json.gz'))
  stage.run(arm(name='short', num_steps=1, profile=(2, 3)), made)
  assert 'no trace: steps 2 to 3 are not among 1 to 1' in capsys.readouterr().err

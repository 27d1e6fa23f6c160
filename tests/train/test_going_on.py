"""Arms that go on: in another way, for more steps, or not at all."""

import dataclasses
import json

from flax import linen as nn
import jax
import numpy as np
import pytest

from instructretro_jax.model.execution import Execution
from instructretro_jax.model.layer_groups import stack_layers
from instructretro_jax.pipeline import manifest, stage
from instructretro_jax.pipeline.stage import Stage
from instructretro_jax.pipeline.status import State, statuses
from instructretro_jax.train import loop
from instructretro_jax.train.fingerprint import params_sha256
from instructretro_jax.train.metrics import TrainLog
from instructretro_jax.train.optimizer import AdamW
from instructretro_jax.train.state import init_params
from tests.train.test_loop import MODEL, CountingTask, root  # noqa: F401, the fixture

DEEP = dataclasses.replace(
  MODEL,
  decoder=dataclasses.replace(MODEL.decoder, num_layers=3),
  cross_attention_layers=(0,),  # so that the two after it are a stack
)
CONSTANT = AdamW(learning_rate=1e-2, final_lr_fraction=1.0)


def arm(**changes):
  fields = dict(
    name='gpt', task=CountingTask(), model=MODEL, num_steps=4, batch_size=8, gate=0.0,
    optimizer=AdamW(learning_rate=1e-2), checkpoint_every=2,
  )  # fmt: skip
  return loop.Train(**fields | changes)


def rows(folder, name='metrics'):
  return [json.loads(line) for line in (folder / 'logs' / f'{name}.jsonl').open()]


def losses(folder):
  return [row['loss'] for row in rows(folder)]


def break_off(monkeypatch, step):
  """The next arm is killed when that step is on its way."""
  add = TrainLog.add

  def dies(self, n, metrics):
    if n == step:
      raise KeyboardInterrupt
    add(self, n, metrics)

  monkeypatch.setattr(TrainLog, 'add', dies)
  return lambda: monkeypatch.setattr(TrainLog, 'add', add)


@pytest.fixture
def made(root):  # noqa: F811
  """A root in which stages can run as in an experiment."""
  manifest.begin(root / 'vocabulary', stage.plan(Given(name='vocabulary'), root))
  manifest.commit(root / 'vocabulary', stage.plan(Given(name='vocabulary'), root), {}, frozenset())
  return root


def test_an_arm_goes_on_in_another_way_and_says_so(made, monkeypatch, capsys):
  whole = arm(name='whole', num_steps=9)
  stage.run(whole, made)
  first = dataclasses.replace(whole, name='gpt')
  mend = break_off(monkeypatch, 7)
  with pytest.raises(KeyboardInterrupt):
    stage.run(first, made)
  mend()
  other = dataclasses.replace(first, num_microbatches=2, checkpoint_every=3)
  stage.run(other, made)
  said = 'gpt: goes on from step 6 in another way: num_microbatches 1 -> 2, checkpoint_every 2 -> 3'
  assert said in capsys.readouterr().err
  np.testing.assert_allclose(losses(made / 'gpt'), losses(made / 'whole'), atol=1e-5)
  assert [row['after_step'] for row in rows(made / 'gpt', 'execution')] == [0, 6]
  # finished, it stays so in any way
  assert stage.is_up_to_date(first, made) and stage.is_up_to_date(other, made)


def test_what_is_computed_is_still_compared(made):
  stage.run(arm(), made)
  for changes in ({'seed': 1}, {'batch_size': 16}, {'execution': Execution(dtype='bfloat16')}):
    with pytest.raises(manifest.StageError, match='made with another configuration'):
      stage.is_up_to_date(arm(**changes), made)


def test_layers_may_be_stacked_and_unstacked_between_steps(made):
  """With moments, of a stack of which one layer is frozen."""
  optimizer = dataclasses.replace(CONSTANT, lr_multipliers=(('decoder_1/', 0.0),))
  fields = {'optimizer': optimizer, 'model': DEEP}
  whole = stage.run(arm(name='whole', num_steps=6, **fields), made)
  for num_steps, scan_layers in ((2, False), (4, True), (6, False)):
    execution = Execution(scan_layers=scan_layers)
    found = stage.run(arm(num_steps=num_steps, execution=execution, **fields), made)
  np.testing.assert_allclose(losses(made / 'gpt'), losses(made / 'whole'), atol=1e-5)
  assert found.counts['parameters'] == whole.counts['parameters']


def test_the_same_parameters_have_one_sha256_stacked_or_not():
  shapes = nn.unbox(jax.eval_shape(lambda: init_params(DEEP, 0, True)))
  rng = np.random.default_rng(0)
  single = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
  stacked = stack_layers(single, DEEP)
  assert stacked.keys() != single.keys()
  assert params_sha256(stacked) == params_sha256(single)


def test_a_constant_arm_trained_longer_is_as_if_at_once(made):
  optimizer = dataclasses.replace(CONSTANT, warmup_fraction=0.0)
  whole = stage.run(arm(name='whole', num_steps=8, optimizer=optimizer), made)
  stage.run(arm(optimizer=optimizer), made)
  assert not stage.is_up_to_date(arm(num_steps=8, optimizer=optimizer), made)
  longer = stage.run(arm(num_steps=8, optimizer=optimizer), made)
  assert longer.counts['params_sha256'] == whole.counts['params_sha256']
  assert longer.counts['trained_longer_from'] == [4]
  assert losses(made / 'gpt') == losses(made / 'whole')
  with pytest.raises(manifest.StageError, match='made with another configuration'):
    stage.run(arm(optimizer=optimizer), made)


def test_a_wsd_arm_goes_on_at_the_full_rate_with_its_first_warm_up(made):
  optimizer = dataclasses.replace(CONSTANT, lr_schedule='wsd', final_lr_fraction=0.0,
                                  warmup_fraction=0.5, cooldown_fraction=0.25)  # fmt: skip
  stage.run(arm(optimizer=optimizer), made)
  stage.run(arm(num_steps=8, optimizer=optimizer), made)
  found = [row['learning_rate'] for row in rows(made / 'gpt')]
  np.testing.assert_allclose(found, 1e-2 * np.array([0.5, 1, 1, 0, 1, 1, 0.5, 0]), atol=1e-8)


def test_a_longer_run_that_is_killed_goes_on(made, monkeypatch):
  stage.run(arm(optimizer=CONSTANT), made)
  longer = arm(num_steps=9, optimizer=CONSTANT)
  mend = break_off(monkeypatch, 7)
  with pytest.raises(KeyboardInterrupt):
    stage.run(longer, made)
  mend()
  assert not manifest.is_finished(made / 'gpt')
  counts = stage.run(longer, made).counts
  assert counts['steps'] == 9 and counts['trained_longer_from'] == [4]
  assert [row['step'] for row in rows(made / 'gpt')] == list(range(1, 10))


def test_a_cosine_arm_cannot_be_trained_longer_and_is_told_why(made):
  stage.run(arm(), made)
  with pytest.raises(manifest.StageError, match=r"cosine schedule.*init_from = 'gpt'.*--rebuild"):
    stage.run(arm(num_steps=8), made)
  with pytest.raises(manifest.StageError, match='made with another configuration'):
    stage.run(arm(num_steps=8, seed=1), made)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given(Stage):
  """What the fixture has made."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader(Stage):
  """Reads the arm."""

  name: str = 'reader'

  def reads(self):
    return ('gpt',)

  def build(self, root, folder):  # noqa: F811
    manifest.write_text(folder / 'read', 'all')
    return {}


def test_what_was_made_of_an_arm_is_refused_before_it_goes_on(made):
  stage.run(arm(optimizer=CONSTANT), made)
  longer = arm(num_steps=8, optimizer=CONSTANT)
  stages = [Given(name='vocabulary'), longer, Reader()]
  found = lambda discarded=(): statuses(stages, made, frozenset(discarded))
  assert [one.state for one in found()] == [State.DONE, State.EXTENDS, State.RUNS]
  stage.run(Reader(), made)
  refused = found()[-1]
  assert refused.state is State.REFUSED
  assert str(refused.error).endswith('would go on: rebuild it, and what follows, with '
                                     '--rebuild=reader')  # fmt: skip
  assert [one.state for one in found({'reader'})] == [State.DONE, State.EXTENDS, State.RUNS]


def test_an_update_that_overflows_is_not_saved_and_its_part_named(made):
  wild = AdamW(learning_rate=3e38, warmup_fraction=0.0, final_lr_fraction=1.0, weight_decay=9.0)
  message = r'update of step 1 made decoder_0/\S+ \(mlp\) not finite. Last good .* none'
  with pytest.raises(manifest.StageError, match=message):
    stage.run(arm(num_steps=1, optimizer=wild), made)
  assert not list((made / 'gpt' / 'checkpoints').glob('[0-9]*'))


def test_the_norm_of_each_part_is_logged(made):
  stage.run(arm(num_steps=1), made)
  (row,) = rows(made / 'gpt')
  parts = {name: x for name, x in row.items() if name.startswith('grad_norm/')}
  assert set(parts) == {f'grad_norm/{p}' for p in ('embeddings', 'mlp', 'norms', 'self_attention')}
  assert np.linalg.norm(list(parts.values())) == pytest.approx(row['grad_norm'], rel=1e-5)
  # neither what a closed gate lets through, nor how far the unknown peak of a CPU was reached
  assert row.keys() - parts == {'step', 'loss', 'grad_norm', 'learning_rate', 'tokens_per_s'}

"""Instruction tuning on the model: dialogues in one row are alone, and what the gate lets in."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructretro_jax.examples.instructions import Instructions
from instructretro_jax.examples.tasks import InstructionTuning
from instructretro_jax.model.execution import Execution
from instructretro_jax.model.retro import Retro
from instructretro_jax.model.sharding import MeshConfig, make_mesh
from instructretro_jax.pipeline import manifest
from instructretro_jax.questions.passage import untitled
from instructretro_jax.questions.passage_windows import PassageNeighbours
from instructretro_jax.questions.questions import Question
from instructretro_jax.text import vocabulary
from instructretro_jax.train import loop
from instructretro_jax.train.multipliers import split_trainable
from instructretro_jax.train.optimizer import AdamW
from instructretro_jax.train.state import abstract_params, fresh_params
from instructretro_jax.train.step import TrainState, losses_of_batch, make_train_step
from tests.checkpoints import load_params
from tests.model.test_retro import CONFIG, init, make_inputs
from tests.text.byte_vocabulary import ByteVocabulary

VOCAB = ByteVocabulary()
C, K, L = CONFIG.chunk_len, 2, 128


def config_of(positions='rotary'):
  decoder = dataclasses.replace(CONFIG.decoder, vocab_size=259, positions=positions, max_len=L)
  return dataclasses.replace(CONFIG, decoder=decoder)


def params_of(config, dtype='float32'):
  return jax.tree.map(lambda x: x.astype(dtype), init(config, make_inputs()))


def ask(n):
  rng = np.random.default_rng(n)
  passages = untitled(''.join(chr(97 + c) for c in rng.integers(0, 26, 8)))
  return Question(f'q{n}', 'ab?'[: 1 + n % 3], passages, ('xyzxyz'[: 1 + n % 6],), 'own', 'given',
                  system='')  # fmt: skip


def rows(questions, is_open, is_packed):
  neighbours = PassageNeighbours(VOCAB, C, K) if is_open else None
  return Instructions(questions, VOCAB, L, neighbours=neighbours, is_packed=is_packed)


@pytest.mark.parametrize('positions', ['rotary', 'learned'])
@pytest.mark.parametrize('gate', [0, 1.0])
def test_a_packed_row_loses_what_its_dialogues_lose_alone(positions, gate):
  questions = [ask(n) for n in range(7)]
  with jax.enable_x64(True):
    config = config_of(positions)
    model, params = Retro(config, Execution(dtype='float64')), params_of(config, 'float64')
    losses = jax.jit(lambda batch: losses_of_batch(model, params, batch, gate))
    sums = []
    for is_packed in (False, True):
      source = rows(questions, gate != 0, is_packed)
      batch = source.examples(np.arange(7) % len(source))  # one shape for both
      sums.append(np.asarray(losses(batch))[: len(source)].sum())
  assert len(source) < 7
  assert sums[0] > 1 and abs(sums[1] / sums[0] - 1) < 1e-12


def test_a_dialogue_reads_its_own_neighbours_and_no_others():
  config = config_of()
  params = params_of(config)
  source = rows([ask(n) for n in range(3)], True, True)
  batch = source.examples(np.zeros(1, np.int64))
  segments = batch['segments'][0]
  assert segments.max() > 1
  losses = jax.jit(lambda batch: losses_of_batch(Retro(config), params, batch, 1.0))
  before = np.asarray(losses(batch))[0]
  for changed in range(1, segments.max() + 1):
    chunks = np.unique(np.flatnonzero(segments == changed) // C)
    neighbours = batch['neighbours'].copy()
    neighbours[0, chunks] = (neighbours[0, chunks] + 1) % 259
    after = np.asarray(losses(batch | {'neighbours': neighbours}))[0]
    learnt = (batch['loss_mask'][0] > 0) & (segments == changed)
    assert (after[learnt] != before[learnt]).all()  # the first token of the answer included
    np.testing.assert_array_equal(after[segments != changed], before[segments != changed])


def test_random_gates_are_those_of_the_rows():
  config = config_of()
  trainable, frozen = split_trainable(params_of(config), ())
  optimizer = AdamW(learning_rate=0.1).make(10, trainable)
  state = TrainState(jnp.ones((), jnp.int32), trainable, frozen, optimizer.init(trainable))
  batch = rows([ask(5), ask(11)], True, False).examples(np.arange(2))
  step = jax.jit(make_train_step(Retro(config), optimizer, 'random'))
  loss = lambda *gates: float(step(state, batch | {'gate': np.array(gates, np.float32)})[1]['loss'])

  def number(gate):
    losses = jax.jit(lambda params: losses_of_batch(Retro(config), params, batch, gate))
    return float(losses(state.params).sum() / batch['loss_mask'].sum())

  assert loss(0, 0) == pytest.approx(number(0), rel=1e-6)
  assert loss(1, 1) == pytest.approx(number(1.0), rel=1e-6)
  assert loss(0, 1) + loss(1, 0) == pytest.approx(loss(0, 0) + loss(1, 1), rel=1e-6)
  assert len({round(loss(*gates), 6) for gates in ((0, 0), (0, 1), (1, 0), (1, 1))}) == 4


@pytest.fixture
def root(tmp_path, monkeypatch, one_device):
  monkeypatch.setattr(vocabulary, 'load', lambda folder: VOCAB)
  monkeypatch.setattr(vocabulary, 'fingerprint', lambda vocab: 'bytes')
  lines = [json.dumps(dataclasses.asdict(ask(n))) + '\n' for n in range(9)]
  (tmp_path / 'questions').mkdir()
  (tmp_path / 'questions' / 'train.jsonl').write_text(''.join(lines))
  plan = manifest.Plan('Questions', {}, {})
  manifest.commit(tmp_path / 'questions', plan, {}, frozenset())
  return tmp_path


def train(root, name, **changes):
  fields = dict(
    name=name, task=InstructionTuning(seq_len=L, is_packed=True), model=config_of(), num_steps=4,
    batch_size=2, gate='random', optimizer=AdamW(learning_rate=1e-2), checkpoint_every=2,
  )  # fmt: skip
  stage = loop.Train(**fields | changes)
  return stage.build(root, root / name)


class Killed(Exception):
  pass


@pytest.mark.slow
def test_a_killed_arm_with_random_gates_ends_the_same(root, monkeypatch):
  whole = train(root, 'whole')
  add, seen = loop.TrainLog.add, []

  def add_or_die(*args):
    seen.append(1)
    if len(seen) == 3:
      raise Killed
    add(*args)

  monkeypatch.setattr(loop.TrainLog, 'add', add_or_die)
  with pytest.raises(Killed):
    train(root, 'killed')
  assert train(root, 'killed') == whole
  assert len(seen) == 5  # it went on from the checkpoint of step 2
  config, params, _ = load_params(root / 'whole')
  first = fresh_params(config, 0, abstract_params(config, True, make_mesh(MeshConfig())))
  moved = jax.tree_util.tree_map(lambda a, b: bool((a != b).any()), params, first)
  assert jax.tree.leaves(moved['encoder']) and any(jax.tree.leaves(moved['encoder']))
  counts = whole['instructions']
  assert counts['questions'] == 9 > counts['rows'] == whole['examples']


def test_retrieved_passages_take_the_place_of_the_own(root):
  folder = root / 'passages'
  folder.mkdir()
  row = lambda n: {'id': f'q{n}', 'passages': [{'text': 'found', 'chunk': 0}]}
  (folder / 'train.jsonl').write_text(''.join(json.dumps(row(n)) + '\n' for n in range(9)))
  task = InstructionTuning(seq_len=L, neighbours='passages')
  assert task.reads() == ('questions', 'vocabulary', 'passages')
  batch = task.source(root, 'train', C).examples(np.array([4]))
  read = batch['neighbours'][batch['neighbour_mask']]
  assert VOCAB.decode(read.tolist()).replace('found', '') == ''
  assert 'neighbours' not in task.source(root, 'train').examples(np.array([4]))


def test_what_cannot_be_is_refused(root):
  with pytest.raises(ValueError, match="'random', not 'half'"):
    train(root, 'x', gate='half')
  leaky = dataclasses.replace(config_of(), mask_neighbours=False)
  with pytest.raises(ValueError, match='set mask_neighbours'):
    train(root, 'x', model=leaky)
  decoder = dataclasses.replace(config_of('learned').decoder, max_len=9)
  with pytest.raises(manifest.StageError, match='9 learned positions'):
    train(root, 'x', gate=0.0, model=dataclasses.replace(CONFIG, decoder=decoder))
  decoder = dataclasses.replace(config_of().decoder, attention_window=9)
  with pytest.raises(manifest.StageError, match='9 tokens of its attention window'):
    train(root, 'x', gate=0.0, model=dataclasses.replace(CONFIG, decoder=decoder))

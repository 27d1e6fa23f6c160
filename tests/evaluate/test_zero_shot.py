"""The stage of zero-shot questions: systems, records, resumption."""

import dataclasses
import json

import pytest

from instructretro_jax.evaluate import zero_shot
from instructretro_jax.evaluate.zero_shot import ZeroShot
from instructretro_jax.pipeline import stage
from instructretro_jax.questions.passage import untitled
from instructretro_jax.questions.questions import Question, Questions
from instructretro_jax.questions.retrieved_passages import FindPassages

ZERO_SHOT = ZeroShot(
  arms=('imported', 'retro_fit'), num_passages=(0, 2), max_questions=3, prompt_len=150, num_new=4
)


@dataclasses.dataclass(frozen=True)
class Given:
  def read(self, problems):
    for n in range(8):
      own = ('spans', 'span') if n % 2 else ('truths', 'boolean')
      yield Question(
        f'q{n}', f'ape {n}?', untitled(f'bee {n}.', 'yes', 'no'), ('yes',), *own, system=''
      )


@pytest.fixture
def run(run_with_arm):
  for name in ('imported', 'retro_fit'):  # as if they had been trained
    (run_with_arm / name / 'manifest.json').unlink(missing_ok=True)
    stage.manifest.commit(
      run_with_arm / name, stage.manifest.Plan('Given', {}, {}), {}, frozenset({'checkpoints'})
    )
  stage.run(Questions(sets=(Given(),), heldout_fraction=1.0), run_with_arm)
  return run_with_arm


def rows_of(root):
  return json.loads((root / 'questions_eval' / 'results.json').read_text())


def test_systems_are_what_arms_can_do_and_ceilings_stand_beside(run):
  counts = stage.run(ZERO_SHOT, run).counts
  assert counts == {'questions': {'spans': 3, 'truths': 3}, 'systems': 5}
  rows = rows_of(run)
  systems = {(row['arm'], row['encoder'], row['passages']) for row in rows}
  assert systems == {
    ('imported', 'off', 0),
    ('imported', 'off', 2),
    ('retro_fit', 'off', 0),
    ('retro_fit', 'off', 2),
    ('retro_fit', 'on', 2),
  }
  ceilings = {(r['passages'], r['value']) for r in rows if r['metric'] == 'ceiling'}
  assert ceilings == {(2, 100)}  # 'yes' is the second passage
  held = {(r['arm'], r['encoder']) for r in rows if 'difference' in r}
  assert held == {('retro_fit', 'off'), ('retro_fit', 'on')}
  assert {r['task'] for r in rows if r['metric'] == 'choice'} == {'all', 'truths'}
  path = run / 'questions_eval' / 'records' / 'retro_fit-encoder_on-passages_2.jsonl'
  records = [json.loads(line) for line in path.read_text().splitlines()]
  assert len(records) == 6 and {r['chosen'] for r in records if 'chosen' in r} <= {'yes', 'no'}


def test_a_system_that_was_asked_is_not_asked_again(run, monkeypatch):
  class Killed(Exception):
    pass

  loaded = []
  reader = zero_shot.CheckpointReader

  def load(folder, *args, **kwargs):
    loaded.append((folder.name, *args[1:]))
    if folder.name == 'retro_fit' and len(loaded) == 2:
      raise Killed
    return reader(folder, *args, **kwargs)

  monkeypatch.setattr(zero_shot, 'CheckpointReader', load)
  with pytest.raises(Killed):
    stage.run(ZERO_SHOT, run)
  stage.run(ZERO_SHOT, run)
  assert loaded == [('imported', False), ('retro_fit', True), ('retro_fit', True)]
  resumed = rows_of(run)
  stage.discard(ZERO_SHOT, run)
  stage.run(ZERO_SHOT, run)
  assert rows_of(run) == resumed


def test_a_decoder_alone_is_asked_without_reading_an_encoder(run, monkeypatch):
  loads = []
  load = zero_shot.CheckpointReader
  monkeypatch.setattr(
    zero_shot, 'CheckpointReader', lambda *args, **kw: loads.append(args[2]) or load(*args, **kw)
  )
  stage.run(dataclasses.replace(ZERO_SHOT, encoders=('off',), num_passages=(2,)), run)
  assert loads == [False, False]


def test_passages_may_be_those_of_the_retriever(run):
  stage.run(FindPassages(splits=('heldout',), num_saved=3), run)
  stage.run(dataclasses.replace(ZERO_SHOT, passages='passages', arms=('imported',)), run)
  assert {r['value'] for r in rows_of(run) if r['metric'] == 'ceiling'} == {0}
  own = dataclasses.replace(ZERO_SHOT, passages='passages', arms=('imported',), own_first=True)
  stage.discard(own, run)
  stage.run(own, run)
  assert {r['value'] for r in rows_of(run) if r['metric'] == 'ceiling'} == {100}


def test_wrong_settings_are_refused():
  with pytest.raises(ValueError, match="each is 'off' or 'on'"):
    dataclasses.replace(ZERO_SHOT, encoders=('half',))
  with pytest.raises(ValueError, match="baseline='other' is none of"):
    dataclasses.replace(ZERO_SHOT, baseline='other')

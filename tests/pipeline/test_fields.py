"""What gin gives is held against the annotations of fields."""

import dataclasses
import typing

import pytest

from instructretro_jax.pipeline import gin_adapter
from instructretro_jax.pipeline.experiment import Experiment
from instructretro_jax.pipeline.fields import wrong_fields
from instructretro_jax.pipeline.manifest import StageError

QUICKSTART = 'experiments/quickstart/run.gin'
WRONG = {int: ('7', 7.0, True, float('nan')), float: ('0.5', True, float('inf')), str: (7, ['a'])}


def members(value, place):
  """Every dataclass below a value, with its place."""
  if dataclasses.is_dataclass(value):
    yield place, value
    for field in dataclasses.fields(value):
      yield from members(getattr(value, field.name), f'{place}.{field.name}')
  elif isinstance(value, (list, tuple)):
    for n, one in enumerate(value):
      yield from members(one, f'{place}[{n}]')


@pytest.fixture(scope='module')
def quickstart():
  return gin_adapter.configure(Experiment, [QUICKSTART])[0]


def test_every_field_of_every_stage_is_held_to_its_annotation(quickstart):
  seen = 0
  for place, one in members(quickstart, 'run'):
    for field in dataclasses.fields(one):
      hint = typing.get_type_hints(type(one))[field.name]
      if hint is bool:
        wrong = ('yes', 1)
      elif typing.get_origin(hint) is tuple:
        wrong = ('abc', 7)
      else:
        wrong = WRONG.get(hint, ())
      given = getattr(one, field.name)
      for value in wrong:
        object.__setattr__(one, field.name, value)
        found = list(wrong_fields(one, place))
        object.__setattr__(one, field.name, given)
        assert [line.split(' = ')[0] for line in found] == [f'{place}.{field.name}'], value
        seen += 1
  assert seen > 300
  assert not list(wrong_fields(quickstart, 'run'))


@pytest.mark.parametrize(
  'binding, words',
  [
    ('CHUNK_LEN = 0', 'chunk_len = 0: give at least 1'),
    ('FIT_STEPS = -3', 'num_steps = -3: give at least 1'),
    ('EVAL_SEQUENCES = 0', 'num_sequences = 0: give at least 1'),
    ('VOCAB_SIZE = 1e3', 'vocab_size = 1000.0 is no int'),
    ('PRETRAIN_STEPS = "ten"', "num_steps = 'ten' is no int"),
  ],
)
def test_a_wrong_value_is_named_with_its_place(binding, words):
  with pytest.raises(StageError, match=words):
    gin_adapter.configure(Experiment, [QUICKSTART], [binding])


def test_text_without_quotes_is_told_apart():
  with pytest.raises(StageError, match=r"""write --gin.DOCUMENTS='"my/folder/\*.txt"'"""):
    gin_adapter.configure(
      Experiment, ['experiments/quickstart/own_text.gin'], ['DOCUMENTS = my/folder/*.txt']
    )

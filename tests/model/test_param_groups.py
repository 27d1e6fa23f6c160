"""What is the retrieval part of a model, by path."""

import dataclasses

from flax import traverse_util
import jax
import pytest

from instructretro_jax.model import param_groups
from instructretro_jax.model.execution import Execution
from instructretro_jax.model.retro import Retro
from instructretro_jax.train.state import init_params
from tests.model.test_retro import CONFIG


def paths_of(config=CONFIG, with_retrieval=True, **kwargs):
  shapes = jax.eval_shape(lambda: init_params(config, 0, with_retrieval, **kwargs))
  return traverse_util.flatten_dict(shapes, sep='/')


@pytest.mark.parametrize(
  'config', [CONFIG, dataclasses.replace(CONFIG, encoder_width=12, encoder_heads=3)]
)
@pytest.mark.parametrize('scan_layers', [False, True])
def test_without_the_retrieval_part_the_plain_decoder_is_left(config, scan_layers):
  whole = paths_of(config, scan_layers=scan_layers)
  plain = paths_of(config, with_retrieval=False, scan_layers=scan_layers)
  kept = {path for path in whole if not param_groups.is_retrieval(path)}
  assert kept == plain.keys() and kept != whole.keys()
  assert param_groups.has_retrieval(whole.keys()) and not param_groups.has_retrieval(plain.keys())


def test_the_two_parts_make_the_whole():
  whole = traverse_util.unflatten_dict(dict.fromkeys(paths_of(), 0), sep='/')
  parts = [param_groups.without_retrieval(whole), param_groups.retrieval_only(whole)]
  flat = [traverse_util.flatten_dict(part, sep='/').keys() for part in parts]
  assert flat[0] | flat[1] == paths_of().keys() and not flat[0] & flat[1]
  assert param_groups.has_retrieval(whole) and not param_groups.has_retrieval(parts[0])


def test_every_parameter_is_in_a_part_and_a_name_stands_for_its_pattern():
  parts = {path: param_groups.part_of(path) for path in paths_of()}
  assert set(parts.values()) == set(param_groups.PARTS)
  for path, part in parts.items():
    assert param_groups.fits(part, path)
    is_retrieval = part in ('encoder', 'cross_attention')
    assert param_groups.fits('retrieval', path) == is_retrieval
  assert param_groups.fits('layer_0/mlp', 'encoder/layer_0/mlp/up/kernel')


def test_weights_are_used_as_they_were_trained_but_one_by_one_and_by_the_plain_kernel():
  trained = Execution(dtype='bfloat16', attention='splash', remat='save_nothing', scan_layers=True)
  assert trained.for_use() == Execution(dtype='bfloat16')
  assert hash(Retro(CONFIG, trained)) != hash(Retro(CONFIG))
  with pytest.raises(ValueError, match="remat must be one of .*'save_nothing'.*not 'minimal'"):
    Execution(remat='minimal')

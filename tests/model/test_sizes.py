"""The published sizes, counted from their gin files without a byte of memory."""

import math
from pathlib import Path

from flax import linen as nn
from flax import traverse_util
import jax
import pytest

from instructretro_jax.model.config import RetroConfig
from instructretro_jax.model.param_groups import is_retrieval
from instructretro_jax.pipeline import gin_adapter
from instructretro_jax.train.state import init_params

MODELS = Path(__file__).resolve().parents[2] / 'gin' / 'models'

# file: (GPT, Retro) as counted by hand from the architecture; then as the papers print them
INSTRUCT_RETRO = {
  'retro_823m': ((823.2e6, 877.5e6), ('823M', '878M')),
  'retro_2b': ((2253.6e6, 2471.5e6), ('2.25B', '2.5B')),
  'retro_8b': ((8523e6, 9529e6), ('8.5B', '9.5B')),
  'retro_22b': ((21266e6, 23984e6), (None, '24B')),  # the label 22B is 21.3 B: see the file
  'retro_43b': ((42825e6, 48462e6), ('43B', '48B')),
}
SHALL_WE_PRETRAIN = {
  'sw_small': ((125e6, 149e6), ('126M', '148M')),
  'sw_medium': ((356e6, 411e6), ('357M', '410M')),
  'sw_xl': ((1316e6, 1534e6), ('1.3B', '1.5B')),
  'sw_xxl': ((8269e6, 9478e6), ('8.3B', '9.5B')),
}
# less embeddings, in millions
DEEPMIND = {
  'retro_deepmind_172m': (132, 172),
  'retro_deepmind_425m': (368, 425),
  'retro_deepmind_1451m': (1309, 1451),
  'retro_deepmind_7532m': (6982, 7532),
}


def model_of(name):
  return gin_adapter.configure(RetroConfig, [str(MODELS / f'{name}.gin')])[0]


def sizes(config):
  """Number of values by path, of the decoder alone and of all."""
  abstract = nn.unbox(jax.eval_shape(lambda: init_params(config, 0, True, scan_layers=True)))
  flat = traverse_util.flatten_dict(abstract, sep='/')
  every = {path: math.prod(x.shape) for path, x in flat.items()}
  decoder = {p: n for p, n in every.items() if not is_retrieval(p)}
  return decoder, every


def printed(count, like):
  """A count with the digits and the unit of `like`, as in '2.25B'."""
  digits, unit = like[:-1], {'M': 1e6, 'B': 1e9}[like[-1]]
  decimals = len(digits.partition('.')[2])
  return f'{count / unit:.{decimals}f}{like[-1]}'


def millions(label):
  return float(label[:-1]) * 1e6 if label.endswith('M') else 0


@pytest.mark.parametrize('name', INSTRUCT_RETRO)
def test_instruct_retro(name):
  config = model_of(name)
  by_hand, published = INSTRUCT_RETRO[name]
  for counted, count, label in zip(sizes(config), by_hand, published):
    found = sum(counted.values())
    assert found == pytest.approx(count, rel=1e-4)
    assert label is None or printed(found, label) == label


@pytest.mark.parametrize('name', SHALL_WE_PRETRAIN)
def test_shall_we_pretrain(name):
  config = model_of(name)
  by_hand, published = SHALL_WE_PRETRAIN[name]
  for counted, count, label in zip(sizes(config), by_hand, published):
    found = sum(counted.values())
    assert found == pytest.approx(count, rel=4e-3)
    # Small and Medium are printed to the million, and each is up to 1.5 M off: see the files
    assert printed(found, label) == label or found == pytest.approx(millions(label), abs=1.5e6)


@pytest.mark.parametrize('name', DEEPMIND)
def test_retro_with_the_matrices_of_its_relative_positions(name):
  config = model_of(name)
  assert config.retro_layers == tuple(range(5, config.decoder.num_layers, 3))
  c, e = config.decoder, config.encoder_stack
  relative = c.width * c.num_heads * c.head_width
  relative_encoder = config.encoder_layers * e.width * e.num_heads * e.head_width
  without_embeddings = lambda found: sum(n for path, n in found.items() if 'embedding' not in path)
  decoder, every = sizes(config)
  gpt = without_embeddings(decoder) + c.num_layers * relative
  retro = without_embeddings(every) + c.num_layers * relative
  retro += len(config.retro_layers) * relative + relative_encoder
  for found, label in zip((gpt, retro), DEEPMIND[name]):
    assert found / 1e6 == pytest.approx(label, abs=0.5 + 2e-4 * label)

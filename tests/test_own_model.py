"""An open model and a user's text, one command: built of the model's folder, run, read back."""

import importlib.util
import json
from pathlib import Path

from click.testing import CliRunner
import numpy as np
import pytest

from instructretro_jax import main
from instructretro_jax.interop import architectures
from instructretro_jax.interop.stages import retro_model
from instructretro_jax.pipeline import gin_adapter, manifest
from instructretro_jax.pipeline.experiment import Experiment
from instructretro_jax.train.loop import Train
from tests.checkpoints import load_params
from tests.interop.test_huggingface import logits

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / 'tests' / 'golden' / 'hf'
FILE = ROOT / 'experiments' / 'own_model' / 'retrofit.gin'


def configure(model, *bindings):
  given = [f"MODEL = '{model}'", "DOCUMENTS = 'my/folder'", *bindings]
  return gin_adapter.configure(Experiment, [str(FILE)], given)[0]


@pytest.mark.parametrize('family', ['llama', 'gpt2'])
def test_sizes_are_those_of_the_folder(family):
  arms = [s for s in configure(GOLDEN / family, 'CHUNK_LEN = 32').stages if isinstance(s, Train)]
  decoder = architectures.read(json.loads((GOLDEN / family / 'config.json').read_text()))
  assert [arm.name for arm in arms] == ['gpt_fit', 'retro_fit']
  assert {arm.model.decoder for arm in arms} == {decoder}
  assert arms[1].model.retro_layers == (1,) and arms[1].model.chunk_len == 32


def test_a_size_without_weights_comes_from_gin():
  files = [str(FILE), str(ROOT / 'gin/models/llama_3.2_1b.gin')]
  chosen = ['RETRO_MODEL = @config.RetroConfig()']
  found, _ = gin_adapter.configure(Experiment, files, chosen, placeholder='not needed')
  assert {s.model.decoder.width for s in found.stages if isinstance(s, Train)} == {2048}


@pytest.mark.parametrize(
  'name, said',
  [
    ('nowhere', 'does not exist'),
    ('', 'has no config.json'),
    ('model.safetensors', 'give its folder'),
  ],
)
def test_what_is_no_model_is_refused(tmp_path, name, said):
  (tmp_path / 'model.safetensors').touch()
  with pytest.raises(manifest.StageError, match=said) as error:
    retro_model(str(tmp_path / name))
  assert str(tmp_path / name) in str(error.value)


def test_a_refusal_while_configuring_is_one_line(tmp_path):
  with pytest.raises(manifest.StageError, match=f'{tmp_path} is no model') as error:
    configure(tmp_path)
  assert '\n' not in str(error.value)


@pytest.mark.slow
def test_the_page_has_the_cost_of_all_sizes():
  spec = importlib.util.spec_from_file_location('cost', FILE.parent / 'cost.py')
  cost = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(cost)
  assert cost.table() in (FILE.parent / 'README.md').read_text()
  sizes = {path.stem for path in (ROOT / 'gin' / 'models').glob('*.gin')}
  own = {name for name in sizes if name.split('_')[0] in ('retro', 'sw', 'quickstart')}
  assert sizes - own == set(cost.MODELS)


@pytest.mark.slow(minutes=2)
def test_whole_command_and_what_it_exports(tmp_path, tiny_documents):
  transformers = pytest.importorskip('transformers', reason='comes with the interop extra')
  from tests.golden import make_hf

  small = {'CHUNK_LEN': 16, 'SEQ_LEN': 64, 'FIT_STEPS': 3, 'EVAL_SEQUENCES': 2}
  command = ['run', f'--gin_file={FILE}', f'--root={tmp_path}/root', '--gin.BATCH_SIZE=2']
  command += [f"--gin.MODEL='{GOLDEN}/llama'", '--gin.HELDOUT_FRACTION=0.3']
  command += [f'--gin.{name}={value}' for name, value in small.items()]
  command.append(f"--gin.DOCUMENTS='{tiny_documents}'")
  said = CliRunner().invoke(main.main, command, catch_exceptions=False).output
  assert 'Report: ' in said
  assert set(json.loads((tmp_path / 'root/report/report.json').read_text())['curves']) == {
    'gpt_fit', 'retro_fit'
  }  # fmt: skip
  config, params, _ = load_params(tmp_path / 'root' / 'retro_fit')
  tokens = np.random.default_rng(0).integers(0, 272, (2, 40))
  expected = logits(config, params, tokens)
  _, before, _ = load_params(tmp_path / 'root' / 'backbone')
  assert np.abs(logits(config, before, tokens) - expected).max() > 1e-3  # something was trained
  out = tmp_path / 'root' / 'export' / 'huggingface'
  opened = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
  np.testing.assert_allclose(make_hf.logits(opened, tokens), expected, atol=1e-4)
  tokenizer = transformers.AutoTokenizer.from_pretrained(out)
  assert tokenizer.decode(tokenizer('The tower.')['input_ids']) == 'The tower.'

"""Weights in and out through stages and the command line, and what training makes of them."""

import dataclasses
import json
from pathlib import Path
import re
import shutil

from click.testing import CliRunner
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from instructretro_jax import main
from instructretro_jax.examples.tasks import LanguageModel
from instructretro_jax.interop import architectures, huggingface
from instructretro_jax.interop.export_stage import Export
from instructretro_jax.interop.stages import ImportVocabulary, ImportWeights, import_alone
from instructretro_jax.model.cross_attention_init import CrossAttentionInit
from instructretro_jax.model.retro import Retro
from instructretro_jax.model.sharding import MeshConfig, make_mesh
from instructretro_jax.pipeline import manifest, stage
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.text import vocabulary
from instructretro_jax.train import loop
from instructretro_jax.train.optimizer import AdamW
from tests.checkpoints import load_params
from tests.interop.test_huggingface import GOLDEN, copy_with, flat, logits

LLAMA = str(GOLDEN / 'llama')


def example(command):
  """The command that the help of a command gives as an example."""
  text = ' '.join(CliRunner().invoke(main.main, [command, '--help']).output.split())
  return re.search(r'Example: instructretro (\S+( --\S+)+)', text)[1].split()


def invoke(arguments):
  return CliRunner().invoke(main.main, arguments)


def test_examples_of_the_command_line_run(tmp_path, monkeypatch):
  root = Path(__file__).parent.parent.parent
  here = lambda command: [
    re.sub('=runs/', f'={tmp_path}/', a).replace('=tests/', f'={root}/tests/')
    for a in example(command)
  ]
  result = invoke(here('import'))
  assert result.exit_code == 0, result.output
  assert '22,392 parameters from huggingface' in result.output
  result = invoke(['inspect', str(tmp_path / 'imported' / 'llama')])
  assert result.exit_code == 0, result.output
  for line in ('embeddings *13,056 *58.3%', 'norms *120', '"num_kv_heads": 2'):
    assert re.search(line, result.output), line
  result = invoke(here('export'))
  assert result.exit_code == 0, result.output
  out = tmp_path / 'exported' / 'llama'
  _, again = huggingface.load(out)
  _, given = huggingface.load(GOLDEN / 'llama')
  for path, x in flat(given).items():
    np.testing.assert_array_equal(flat(again)[path], x)
  assert (out / 'tokenizer.json').read_text() == (GOLDEN / 'llama/tokenizer.json').read_text()
  assert json.loads((out / 'config.json').read_text())['eos_token_id'] == 0


def test_the_checkpoint_is_one_of_training_and_a_vocabulary(tmp_path):
  made = import_alone(LLAMA, tmp_path / 'weights')
  config, params, record = load_params(tmp_path / 'weights')
  expected = load_file(GOLDEN / 'llama' / 'expected.safetensors')
  found = logits(config, params, expected['tokens'])
  np.testing.assert_allclose(found, expected['logits'], atol=1e-4)
  vocab = vocabulary.load(tmp_path / 'weights')
  assert vocab.eos_id == 0 and vocab.vocab_size == 272
  assert record['vocabulary'] == vocabulary.fingerprint(vocab)
  assert made.counts['params_sha256'] == loop.params_sha256(params)
  assert manifest.read_manifest(tmp_path / 'weights').counts == made.counts
  stage.run(ImportVocabulary(source=LLAMA), tmp_path)
  other = vocabulary.load(tmp_path / 'vocabulary')
  assert vocabulary.fingerprint(other) == vocabulary.fingerprint(vocab)


@pytest.mark.parametrize('fault', ['missing tensor', 'no tokenizer', 'other tokenizer', 'nothing'])
def test_a_failing_import_writes_nothing(tmp_path, fault):
  source, extra = copy_with(tmp_path, 'llama'), []
  if fault == 'missing tensor':
    shutil.copy(GOLDEN / 'qwen2' / 'model.safetensors', source)
  if fault == 'no tokenizer':
    (source / 'tokenizer.json').unlink()
  if fault == 'other tokenizer':
    content = json.loads((source / 'tokenizer.json').read_text())
    content['added_tokens'].append({**content['added_tokens'][0], 'id': 272, 'content': '<|x|>'})
    (source / 'tokenizer.json').write_text(json.dumps(content))
  if fault == 'nothing':
    source = tmp_path / 'nowhere'
  result = invoke(['import', f'--source={source}', f'--out={tmp_path}/out/weights', *extra])
  assert isinstance(result.exception, StageError), result.output
  assert not list((tmp_path / 'out').iterdir())


def test_a_failing_import_ends_with_an_exit_code(monkeypatch, capsys, tmp_path):
  arguments = ['instructretro', 'import', '--source=nowhere', f'--out={tmp_path}/x']
  monkeypatch.setattr('sys.argv', arguments)
  with pytest.raises(SystemExit) as done:
    main.console()
  assert done.value.code == 1
  assert 'nowhere does not exist' in capsys.readouterr().err


def test_weights_that_the_experiment_does_not_expect_are_refused(tmp_path):
  config, _ = huggingface.load_lazy(GOLDEN / 'mistral')
  with pytest.raises(StageError, match='head_width is 6 there and 8 here'):
    stage.run(ImportWeights(source=LLAMA, model=config), tmp_path)


def test_an_export_is_a_stage_and_keeps_what_is_written(tmp_path):
  stage.run(ImportWeights(source=LLAMA), tmp_path)
  out = tmp_path / 'export' / 'huggingface'
  made = stage.run(Export(arm='backbone'), tmp_path)
  assert {'huggingface/config.json', 'huggingface/model.safetensors'} <= set(made.files)
  _, again = huggingface.load(out)
  _, given = huggingface.load(GOLDEN / 'llama')
  for path, x in flat(given).items():
    np.testing.assert_array_equal(flat(again)[path], x)
  (tmp_path / 'export' / manifest.MANIFEST).unlink()  # as if killed before the manifest
  written = (out / 'model.safetensors').stat().st_mtime_ns
  stage.run(Export(arm='backbone'), tmp_path)
  assert (out / 'model.safetensors').stat().st_mtime_ns == written
  with pytest.raises(ValueError, match="'gguf'"):
    Export(arm='backbone', formats=('gguf',))


def arm(model, gate, kind='random'):
  return loop.Train(
    name='arm',
    task=LanguageModel(seq_len=16, neighbours='neighbours'),
    model=model,
    optimizer=AdamW(learning_rate=1e-3),
    num_steps=1,
    batch_size=1,
    gate=gate,
    init_from='backbone',
    init=CrossAttentionInit(kind=kind),
  )


def first_params(arm, root, mesh, record):
  return arm._initializer(record['vocabulary']).params(mesh, root / arm.init_from)


def test_at_step_0_a_retro_fit_is_the_backbone(tmp_path):
  stage.run(ImportWeights(source=LLAMA), tmp_path)
  config, backbone, record = load_params(tmp_path / 'backbone')
  model = architectures.with_retrieval(config.decoder, chunk_len=4, encoder_layers=1)
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 272, (2, 16)).astype(np.int32)
  neighbours = rng.integers(0, 272, (2, 4, 2, 8)).astype(np.int32)
  inputs = (tokens, np.ones_like(tokens), neighbours, np.ones(neighbours.shape, bool))
  with jax.set_mesh(mesh):
    fitted = first_params(arm(model, 1.0, 'zero_output'), tmp_path, mesh, record)
  apply = lambda gate: jax.jit(
    lambda params: Retro(model).apply({'params': params}, *inputs, gate=gate, method='logits')
  )
  closed, open_ = apply(0), apply(1.0)
  expected = np.asarray(closed(backbone))
  np.testing.assert_array_equal(closed(fitted), expected)
  np.testing.assert_array_equal(open_(fitted), expected)
  # and it is the output projections that keep the neighbours out
  output = fitted['decoder_1']['cross_attention']['attention']['output']
  output['kernel'] = output['kernel'] + 0.1
  assert np.abs(np.asarray(open_(fitted)) - expected).max() > 1e-2


def test_training_refuses_weights_of_another_decoder(tmp_path):
  stage.run(ImportWeights(source=LLAMA), tmp_path)
  config, _, record = load_params(tmp_path / 'backbone')
  turned = architectures.with_retrieval(dataclasses.replace(config.decoder, rotary_base=500.0))
  with pytest.raises(StageError, match='rotary_base is 10000.0 there and 500.0 here$'):
    first_params(arm(turned, 0.0), tmp_path, make_mesh(MeshConfig()), record)

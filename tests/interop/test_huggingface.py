"""Hugging Face folders against logits of transformers, and there and back."""

import dataclasses
import json
from pathlib import Path
import shutil

from flax import traverse_util
import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from instructretro_jax.interop import architectures, exported_config, huggingface, tensor_table
from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.model.retro import Retro
from instructretro_jax.model.rotary_scaling import LinearScaling, Llama3Scaling
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.text.hugging_face_vocabulary import HuggingFaceVocabulary

GOLDEN = Path(__file__).parent.parent / 'golden' / 'hf'
FAMILIES = architectures.FAMILIES


def logits(config, params, tokens):
  apply = jax.jit(lambda p, x: Retro(config).apply({'params': p}, x, gate=0, method='logits'))
  return np.asarray(apply(params, np.asarray(tokens, np.int32)))


def flat(params):
  return traverse_util.flatten_dict(params, sep='/')


def copy_with(tmp_path, family, **changes):
  """A golden folder with other settings in its config.json."""
  folder = tmp_path / 'changed'
  shutil.copytree(GOLDEN / family, folder)
  content = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps({**content, **changes}))
  return folder


@pytest.mark.parametrize('family', FAMILIES)
def test_logits_are_those_of_transformers(family):
  config, params = huggingface.load(GOLDEN / family)
  expected = load_file(GOLDEN / family / 'expected.safetensors')
  found = logits(config, params, expected['tokens'])
  assert np.abs(expected['logits']).max() > 1
  np.testing.assert_allclose(found, expected['logits'], atol=1e-4)


@pytest.mark.parametrize('kind', ['linear', 'llama3', 'yarn', 'yarn-mscale'])
def test_logits_with_scaled_rotary_positions_are_those_of_transformers(tmp_path, kind):
  path = GOLDEN / 'llama' / f'rope-{kind}.safetensors'
  with safe_open(path, 'np') as file:
    rope = json.loads(file.metadata()['rope_parameters'])
  config, params = huggingface.load(copy_with(tmp_path, 'llama', rope_parameters=rope))
  expected = load_file(path)
  kept = expected['logits'].shape[1]
  assert expected['tokens'].shape[1] > 16 + kept  # all of them beyond the length at first
  found = logits(config, params, expected['tokens'])[:, -kept:]
  np.testing.assert_allclose(found, expected['logits'], atol=1e-5)
  plain = dataclasses.replace(config.decoder, rotary_scaling=None)
  unscaled = logits(dataclasses.replace(config, decoder=plain), params, expected['tokens'])
  assert np.abs(unscaled[:, -kept:] - expected['logits']).max() > 1e-2
  assert architectures.read(exported_config.write(config.decoder)) == config.decoder


def test_retrieval_is_wrapped_around_the_decoder():
  config, lazy = huggingface.load_lazy(GOLDEN / 'llama', chunk_len=4, encoder_layers=1)
  assert config.retro_layers == (1,)  # the reference's rule names none of two layers
  assert config.mask_neighbours and config.encoder_rotary
  assert (config.chunk_len, config.encoder_layers) == (4, 1)
  assert not any('encoder' in path or 'cross_attention' in path for path in lazy)
  query = lazy['decoder_1/self_attention/attention/query/kernel']
  assert (query.shape, query.dtype) == ((24, 4, 6), np.float32)
  assert query.read().shape == query.shape
  assert not huggingface.load_lazy(GOLDEN / 'gpt2')[0].encoder_rotary


def test_every_tensor_that_does_not_fit_is_listed(tmp_path):
  folder = copy_with(tmp_path, 'llama')
  tensors = load_file(folder / 'model.safetensors')
  del tensors['model.norm.weight']
  tensors['model.layers.0.mlp.up_proj.weight'] = np.zeros((3, 2), np.float32)
  tensors['model.layers.7.mlp.up_proj.weight'] = np.zeros((3, 2), np.float32)
  tensors['model.layers.0.self_attn.rotary_emb.inv_freq'] = np.zeros(3, np.float32)  # no weight
  save_file(tensors, folder / 'model.safetensors')
  with pytest.raises(StageError) as error:
    huggingface.load_lazy(folder)
  assert str(error.value).partition(' does not fit llama: ')[2].split('; ') == [
    'layers.0.mlp.up_proj.weight has the shape [3, 2], expected [40, 24]',
    'norm.weight [24] is missing',
    'layers.7.mlp.up_proj.weight is unknown',
  ]


@pytest.mark.parametrize(
  ('family', 'changes', 'named'),
  [
    ('llama', {'rope_parameters': {'rope_type': 'llama3'}},
     "'llama3' without factor, low_freq_factor, high_freq_factor"),
    ('llama', {'rope_scaling': {'type': 'dynamic', 'factor': 4}}, "rope_scaling is 'dynamic'"),
    ('llama', {'rope_parameters': {'rope_type': 'longrope'}}, "rope_scaling is 'longrope'"),
    ('llama', {'rope_scaling': {'type': 'yarn', 'factor': 4, 'mrope_section': [1]}},
     "'yarn' with mrope_section"),
    ('llama', {'rope_scaling': {'type': 'yarn', 'factor': 4, 'beta_fast': 0.5}}, 'beta_slow 1.0'),
    ('llama', {'rope_parameters': {'full_attention': {'rope_type': 'yarn'}}}, 'layer to layer'),
    ('llama', {'partial_rotary_factor': 0.5}, 'partial_rotary_factor'),
    ('llama', {'rope_parameters': None, 'rope_scaling': {'factor': 8.0}}, 'the factor 8.0'),
    ('llama', {'num_attention_heads': 5}, 'llama: num_heads 5 is no multiple of kv heads 2'),
    ('mistral', {'sliding_window': 4096, 'max_position_embeddings': None}, 'sliding_window'),
    ('llama', {'hidden_act': 'relu'}, "hidden_act is 'relu'"),
    ('llama', {'attention_bias': True}, 'attention_bias and mlp_bias'),
    ('llama', {'quantization_config': {'bits': 4}}, 'quantization_config'),
    ('llama', {'model_type': 'mamba'}, "model_type is 'mamba'"),
    ('gemma', {'model_type': 'gemma2'}, "'gemma2', which has caps of scores.*attention windows"),
    ('gemma', {'attention_bias': True}, 'attention_bias is True'),
    ('gemma', {'use_bidirectional_attention': True}, 'use_bidirectional_attention is True'),
    ('gemma', {'hidden_activation': 'relu'}, "hidden_activation is 'relu'"),
    ('olmo2', {'attention_bias': True}, 'attention_bias is True'),
    ('olmo2', {'model_type': 'olmo3'}, "'olmo3', which has attention windows"),
    ('gpt_neox', {'attention_bias': False}, 'attention_bias is False'),
    ('gpt_neox', {'rotary_pct': 0.25, 'partial_rotary_factor': 0.25},
     'partial_rotary_factor is 0.25, but 0.5'),
    ('gpt_neox', {'rotary_pct': 0.3, 'rope_parameters': None}, 'pairs of channels.*1 of 4'),
    ('phi3', {'rope_scaling': {'type': 'longrope', 'factor': 2}}, "rope_scaling is 'longrope'"),
    ('phi3', {'rope_scaling': {'type': 'yarn', 'factor': 2}}, 'rope_scaling of phi3 is longrope'),
    ('phi3', {'sliding_window': 16}, 'sliding_window is 16'),
    ('llama', {'hidden_size': None}, 'hidden_size is missing'),
    ('mistral', {'sliding_window': 16}, 'sliding_window is 16'),
    ('qwen2', {'use_sliding_window': True, 'sliding_window': 16}, 'sliding_window is 16'),
    ('qwen3', {'layer_types': ['sliding_attention'], 'sliding_window': 9}, 'sliding_window is 9'),
    ('qwen3', {'attention_bias': True}, 'attention_bias is True'),
    ('gpt2', {'scale_attn_by_inverse_layer_idx': True}, 'scale_attn_by_inverse_layer_idx'),
    ('llama', {'attn_logit_softcapping': 50.0}, 'softcapping is 50.0, which is not'),
    ('llama', {'logits_scaling': 8.0}, 'logits_scaling is 8.0'),
    ('llama', {'auto_map': {'AutoModelForCausalLM': 'm.Mine'}}, 'auto_map .*AutoModelForCausalLM'),
    ('gpt2', {'sliding_window': 16}, 'sliding_window is 16'),
    ('mistral', {'num_local_experts': 8}, 'num_local_experts is 8'),
  ],
)  # fmt: skip
def test_what_changes_the_numbers_and_is_not_supported_is_refused_by_name(
  tmp_path, family, changes, named
):
  with pytest.raises(StageError, match=named):
    huggingface.load_lazy(copy_with(tmp_path, family, **changes))


@pytest.mark.parametrize(
  ('family', 'changes'),
  [
    ('qwen2', {'use_sliding_window': False, 'sliding_window': 16}),
    ('qwen3', {'rope_parameters': None, 'rope_theta': 500.0, 'rope_scaling': None}),  # older files
    ('llama', {'rope_scaling': {'type': 'linear', 'factor': 1.0}, 'rope_parameters': None}),
    ('llama', {'rope_scaling': {'rope_type': 'default'}, 'original_max_position_embeddings': 8}),
    # as EleutherAI's files say it, and Google's first
    ('gpt_neox', {'rope_parameters': None, 'rotary_pct': 0.5, 'rotary_emb_base': 10000}),
    ('gemma', {'hidden_act': 'gelu', 'hidden_activation': None, 'rope_parameters': None}),
  ],
)
def test_what_is_inactive_is_accepted(tmp_path, family, changes):
  found, _ = huggingface.load_lazy(copy_with(tmp_path, family, **changes))
  assert found == huggingface.load_lazy(GOLDEN / family)[0]


def test_a_window_as_long_as_the_context_bounds_the_texts(tmp_path):
  found, _ = huggingface.load_lazy(copy_with(tmp_path, 'mistral', sliding_window=64))
  plain = huggingface.load_lazy(GOLDEN / 'mistral')[0]
  assert found.decoder == dataclasses.replace(plain.decoder, attention_window=64)
  assert found.decoder.longest_text == 64 and plain.decoder.longest_text is None
  written = exported_config.write(found.decoder)
  assert written['architectures'] == ['MistralForCausalLM'] and written['sliding_window'] == 64
  assert architectures.read(written) == found.decoder


def test_a_tied_head_written_twice_must_be_the_table(tmp_path):
  folder = copy_with(tmp_path, 'qwen2')
  tensors = load_file(folder / 'model.safetensors')
  tensors['lm_head.weight'] = tensors['model.embed_tokens.weight'].copy()
  save_file(tensors, folder / 'model.safetensors')
  huggingface.load_lazy(folder)
  tensors['lm_head.weight'][0, 0] += 1
  save_file(tensors, folder / 'model.safetensors')
  with pytest.raises(StageError, match='lm_head.weight is not the embedding table'):
    huggingface.load_lazy(folder)


def test_buffers_of_old_files_are_no_weights(tmp_path):
  folder = copy_with(tmp_path, 'gpt_neox')
  tensors = load_file(folder / 'model.safetensors')
  for buffer in ('bias', 'masked_bias', 'rotary_emb.inv_freq'):
    tensors[f'gpt_neox.layers.0.attention.{buffer}'] = np.zeros(3, np.float32)
  save_file(tensors, folder / 'model.safetensors')
  assert len(huggingface.load_lazy(folder)[1]) == len(tensors) - 3 + 2 * 2 * 2  # q, k, v apart


def test_folders_without_the_files_are_refused(tmp_path):
  with pytest.raises(StageError, match='no config.json'):
    huggingface.load_lazy(tmp_path)
  folder = copy_with(tmp_path, 'llama')
  (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')
  with pytest.raises(StageError, match='only safetensors are read'):
    huggingface.load_lazy(folder)


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('max_shard_bytes', [1 << 30, 20_000], ids=['whole', 'sharded'])
def test_out_and_in_is_the_identity(tmp_path, family, max_shard_bytes):
  config, params = huggingface.load(GOLDEN / family)
  huggingface.save(config, params, tmp_path / 'out', max_shard_bytes=max_shard_bytes)
  assert len(list((tmp_path / 'out').glob('*.safetensors'))) > (max_shard_bytes < 1 << 20)
  again, found = huggingface.load(tmp_path / 'out')
  assert again == config
  assert flat(found).keys() == flat(params).keys()
  for path, x in flat(params).items():
    np.testing.assert_array_equal(flat(found)[path], x, err_msg=path)


DECODER = DecoderConfig(
  vocab_size=32, num_layers=2, width=16, num_heads=2, ff_width=24, init_std=0.3,
  embedding_init_std=0.5, tie_embeddings=False, embedding_scale=2.5,
)  # fmt: skip


def make(decoder):
  """A Retro model with random weights, the retrieval part too."""
  config = RetroConfig(decoder=decoder, chunk_len=4, cross_attention_layers=(0,))
  rng = np.random.default_rng(0)
  shapes = tensor_table.decoder_shapes(config)
  arrays = {p: np.asarray(0.3 * rng.standard_normal(s), np.float32) for p, s in shapes.items()}
  for path in ('encoder/layer_0/mlp/up/kernel', 'decoder_0/cross_attention/norm/scale'):
    arrays[path] = np.ones((16, 16), np.float32)
  return config, traverse_util.unflatten_dict(arrays, sep='/')


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'use_bias': True},
    {'norm': 'layernorm_1p', 'positions': 'learned', 'activation': 'gelu', 'use_bias': True,
     'max_len': 16},
    {'norm': 'layernorm_1p', 'activation': 'gelu', 'use_bias': True, 'parallel_residual': True},
    {'norm': 'rmsnorm_1p', 'rotary_scaling': Llama3Scaling(factor=2.0)},
    {'norm': 'rmsnorm_1p', 'embedding_scale': 4.0, 'tie_embeddings': True, 'activation': 'geglu'},
  ],
  ids=['llama', 'llama-bias', 'gpt2', 'gpt-neox', 'llama-1p', 'gemma'],
)  # fmt: skip
def test_the_decoder_of_a_retro_model_goes_out_alone(tmp_path, changes):
  config, params = make(dataclasses.replace(DECODER, **changes))
  huggingface.save(config, params, tmp_path / 'out')
  again, found = huggingface.load(tmp_path / 'out')
  tokens = np.arange(12)[None]
  expected = logits(config, params, tokens)
  np.testing.assert_allclose(logits(again, found, tokens), expected, atol=1e-5)
  with pytest.raises(StageError, match='is there already'):
    huggingface.save(config, params, tmp_path / 'out')


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'activation': 'squared_relu'}, "activation='squared_relu'.*'swiglu' or 'geglu'"),
    ({'tie_embeddings': True}, 'embedding_scale=2.5.*tie_embeddings=False'),
    ({'rotary_fraction': 0.5, 'qk_norm': True}, 'rotary_fraction=0.5'),
    ({'rotary_fraction': 0.5, 'use_bias': True}, 'use_bias=True: .*as in Phi-3'),
    ({'rotary_fraction': 0.5, 'rotary_scaling': LinearScaling(factor=2.0)}, 'rotary_scaling=Lin'),
    ({'parallel_residual': True}, 'parallel_residual=True'),
    ({'qk_norm': True, 'qk_norm_across_heads': True}, 'qk_norm_across_heads=True'),
    ({'norm_placement': 'output'}, 'qk_norm=False: .*as in OLMo 2, it must be True'),
    ({'positions': 'learned', 'attention_window': 8}, 'attention_window=8'),
    ({'norm': 'layernorm', 'use_bias': True, 'activation': 'gelu', 'num_kv_heads': 1},
     'kv_heads=1: .*as in GPT-NeoX'),
    ({'rotary_interleaved': True}, 'rotary_interleaved=True'),
    ({'norm': 'layernorm'}, "activation='swiglu'.*GPT-NeoX.*use_bias=False"),
    ({'final_norm': False}, 'final_norm=False'),
    ({'positions': 'learned'}, "activation='swiglu'.*norm='rmsnorm'.*use_bias=False"),
    ({'positions': 'none'}, "positions='none'"),
    ({'qk_norm': True, 'qkv_bias': True}, 'qkv_bias=True'),
  ],
)  # fmt: skip
def test_a_decoder_that_no_architecture_has_is_refused_by_name(tmp_path, changes, named):
  config = RetroConfig(decoder=dataclasses.replace(DECODER, **changes), cross_attention_layers=(0,))
  with pytest.raises(StageError, match=named):
    huggingface.save(config, {}, tmp_path / 'out')
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize('family', FAMILIES)
def test_live_logits_in_and_out(tmp_path, family):
  """Needs the extra `interop`: a fresh random model in, and out again into transformers."""
  transformers = pytest.importorskip('transformers', reason='comes with the interop extra')

  from tests.golden import make_hf

  settings = {
    'num_hidden_layers': 3,
    'tie_word_embeddings': family not in ('qwen2', 'gemma'),
    'vocab_size': make_hf.VOCAB_SIZE,
  }
  config = make_hf.CONFIGS[family].to_dict() | settings
  config.pop('layer_types', None)
  model = make_hf.make_model(type(make_hf.CONFIGS[family])(**config), seed=1)
  model.save_pretrained(tmp_path / 'in')
  tokens = np.random.default_rng(1).integers(0, make_hf.VOCAB_SIZE, (2, 40))
  expected = make_hf.logits(model, tokens)
  config, params = huggingface.load(tmp_path / 'in')
  found = logits(config, params, tokens)
  print(f'{family}: largest difference {np.abs(found - expected).max():.2e}')
  np.testing.assert_allclose(found, expected, atol=1e-4)
  tokenizer = GOLDEN / 'llama' / 'tokenizer.json'
  vocab = HuggingFaceVocabulary(str(tokenizer), '<|end|>')
  huggingface.save(config, params, tmp_path / 'out', tokenizer, vocab)
  opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out').eval()
  np.testing.assert_allclose(make_hf.logits(opened, tokens), expected, atol=1e-4)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'out')
  assert (tokenizer.eos_token_id, opened.config.eos_token_id) == (0, 0)
  assert tokenizer.decode(tokenizer('A tower, 12 metres.')['input_ids']) == 'A tower, 12 metres.'


@pytest.mark.slow
@pytest.mark.parametrize('positions', ['rotary', 'learned'])
def test_live_export_of_a_retro_model(tmp_path, positions):
  transformers = pytest.importorskip('transformers', reason='comes with the interop extra')

  from tests.golden import make_hf

  learned = {'norm': 'layernorm_1p', 'positions': 'learned', 'activation': 'gelu', 'use_bias': True}
  config, params = make(dataclasses.replace(DECODER, **(learned if positions == 'learned' else {})))
  huggingface.save(config, params, tmp_path / 'out')
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out').eval()
  tokens = np.arange(24)[None]
  np.testing.assert_allclose(
    make_hf.logits(model, tokens), logits(config, params, tokens), atol=1e-4
  )


@pytest.mark.slow
def test_live_rope_scaling_of_published_sizes(tmp_path):
  """Frequencies at published settings, and logits far beyond the length at first."""
  transformers = pytest.importorskip('transformers', reason='comes with the interop extra')
  rope_utils = pytest.importorskip('transformers.modeling_rope_utils')

  from tests.golden import make_hf

  llama3 = {'rope_type': 'llama3', 'factor': 32.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0}
  ropes = [
    {'rope_type': 'linear', 'factor': 8.0},
    {**llama3, 'original_max_position_embeddings': 8192},
    {'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 32_768},
    {'rope_type': 'yarn', 'factor': 40.0, 'original_max_position_embeddings': 4096, 'mscale': 1.0,
     'mscale_all_dim': 0.7, 'truncate': False},
    {'rope_type': 'yarn', 'factor': 16.0, 'original_max_position_embeddings': 64},
  ]  # fmt: skip
  for rope in ropes:
    rope |= {'rope_theta': 500_000.0}
    settings = {**make_hf.LLAMA, 'head_dim': 64, 'max_position_embeddings': 131_072}
    config = transformers.LlamaConfig(**settings, rope_parameters=rope)
    expected, magnitude = rope_utils.ROPE_INIT_FUNCTIONS[rope['rope_type']](config)
    decoder = architectures.read({**config.to_dict(), 'rope_parameters': rope})
    scaling = decoder.rotary_scaling
    found = 500_000.0 ** (-np.arange(32) / 32) * scaling.multipliers(500_000.0, 32)
    np.testing.assert_allclose(found, expected.numpy(), rtol=2e-6)
    assert scaling.magnitude == pytest.approx(magnitude, rel=1e-12)
  make_hf.make_model(config, seed=2).save_pretrained(tmp_path / 'in')
  ours, params = huggingface.load(tmp_path / 'in')
  model = make_hf.scaled(tmp_path / 'in', rope)
  tokens = np.random.default_rng(3).integers(0, make_hf.VOCAB_SIZE, (1, 320))
  expected, found = make_hf.logits(model, tokens), logits(ours, params, tokens)
  print(f'largest difference {np.abs(found - expected).max():.2e}')
  np.testing.assert_allclose(found, expected, atol=1e-4)
  huggingface.save(ours, params, tmp_path / 'out')
  opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out').eval()
  np.testing.assert_allclose(make_hf.logits(opened, tokens), expected, atol=1e-4)

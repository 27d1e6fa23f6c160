"""Tokenizers as other people have them: starts, ends, templates and texts that spell tokens."""

import json
import shutil

from click.testing import CliRunner
import numpy as np
import pytest
from safetensors.numpy import save_file

from instructretro_jax import main
from instructretro_jax.inference import session
from instructretro_jax.inference.answer import Request
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.questions.formats import PLAIN
from instructretro_jax.text import vocabulary
from tests.text import tokenizer_forms

TEMPLATE = (
  "{% for m in messages %}{% if m['role'] == 'user' %}[ASK] {{ m['content'] }} [/ASK]"
  "{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)


def model_folder(folder, form, writes, files=(), rows=None):
  """A model that writes one token, whatever it reads, with a tokenizer in some form.

  Args:
    files: contents of its other JSON files by name.
    rows: of its embeddings, if not as many as the tokenizer has.
  """
  folder.mkdir()
  content = tokenizer_forms.made_of(form)
  (folder / 'tokenizer.json').write_text(json.dumps(content))
  V, D, F = rows or tokenizer_forms.load(form).vocab_size, 8, 12
  config = {
    'model_type': 'llama', 'vocab_size': V, 'hidden_size': D, 'intermediate_size': F,
    'num_hidden_layers': 1, 'num_attention_heads': 2, 'max_position_embeddings': 512,
    'tie_word_embeddings': False,
  }  # fmt: skip
  for name, own in ({'config.json': {}} | dict(files)).items():
    base = config if name == 'config.json' else {}
    (folder / name).write_text(json.dumps(base | own))
  layer = {
    'self_attn.q_proj': (D, D), 'self_attn.k_proj': (D, D), 'self_attn.v_proj': (D, D),
    'self_attn.o_proj': (D, D), 'mlp.gate_proj': (F, D), 'mlp.up_proj': (F, D),
    'mlp.down_proj': (D, F),
  }  # fmt: skip
  tensors = {f'model.layers.0.{name}.weight': np.zeros(s) for name, s in layer.items()}
  norms = ('layers.0.input_layernorm', 'layers.0.post_attention_layernorm', 'norm')
  tensors |= {f'model.{name}.weight': np.ones(D) for name in norms}
  tensors |= {'model.embed_tokens.weight': np.ones((V, D)), 'lm_head.weight': np.zeros((V, D))}
  tensors['lm_head.weight'][writes] = 1
  save_file(
    {name: np.asarray(x, np.float32) for name, x in tensors.items()}, folder / 'model.safetensors'
  )
  return folder


def run(*arguments):
  result = CliRunner().invoke(main.main, list(map(str, arguments)))
  if result.exception is not None:
    raise result.exception
  return result.stdout


def answers(checkpoint, tmp_path, *extra, prompt='Hi'):
  (tmp_path / 'prompts.jsonl').write_text(json.dumps({'prompt': prompt}) + '\n')
  given = (f'--checkpoint={checkpoint}', f'--prompts={tmp_path}/prompts.jsonl', '--max_new=3')
  return json.loads(run('generate', *given, *extra).splitlines()[-1])


ENDS = {
  'the second of generation_config.json': {'generation_config.json': {'eos_token_id': [1, 4]}},
  'the second of config.json': {'config.json': {'eos_token_id': [1, 4]}},
  'that of tokenizer_config.json': {
    'tokenizer_config.json': {'eos_token': {'content': '<|eot_id|>'}},
    'config.json': {'eos_token_id': 1},
  },
  'that of special_tokens_map.json': {
    'special_tokens_map.json': {'eos_token': '<|eot_id|>'},
    'tokenizer_config.json': {'eos_token': '<|end_of_text|>'},
  },
}


@pytest.mark.parametrize('is_given', [False, True], ids=['own', 'given'])
@pytest.mark.parametrize('case', ENDS)
def test_every_end_that_the_files_name_ends_an_answer(tmp_path, case, is_given):
  source = model_folder(tmp_path / 'model', 'llama3', writes=4, files=ENDS[case])
  other = shutil.copy(source / 'tokenizer.json', tmp_path / 'other.json')
  given = [f'--tokenizer={other}'] if is_given else []
  run('import', f'--source={source}', f'--out={tmp_path}/out', *given)
  row = answers(tmp_path / 'out', tmp_path)
  assert (row['text'], row['finish'], row['tokens']) == ('', 'end', 0)


def test_an_end_that_nobody_names_ends_nothing(tmp_path):
  source = model_folder(tmp_path / 'model', 'llama3', writes=4)
  run('import', f'--source={source}', f'--out={tmp_path}/out', '--eos_token=<|end_of_text|>')
  assert answers(tmp_path / 'out', tmp_path)['finish'] == 'length'


def test_an_end_that_is_no_token_names_the_option_and_the_file(tmp_path):
  source = model_folder(tmp_path / 'model', 'llama3', writes=4)
  with pytest.raises(StageError) as error:
    run('import', f'--source={source}', f'--out={tmp_path}/out', '--eos_token=<end>')
  expected = f"{source}/tokenizer.json has no token '<end>': give another eos_token (--eos_token)"
  assert str(error.value) == expected
  content = tokenizer_forms.made_of('llama3')
  text = json.dumps(content).replace('end_of_text', 'over')
  (source / 'tokenizer.json').write_text(text)
  with pytest.raises(StageError, match=r'model/tokenizer.json has none of .*--eos_token'):
    run('import', f'--source={source}', f'--out={tmp_path}/out')


def test_the_start_is_put_first_in_prompts_and_scores(tmp_path):
  source = model_folder(tmp_path / 'model', 'llama3', writes=9)
  run('import', f'--source={source}', f'--out={tmp_path}/out')
  sampler, _ = session.open_sampler(tmp_path / 'out', None, None)
  assert sampler.tokenize('Hi')[0] == 0 and 0 not in sampler.tokenize('Hi')[1:]
  scored = json.loads(run('score', f'--checkpoint={tmp_path}/out', '--text=T', '--json'))
  assert scored['pieces'] == ['', 'T'] and scored['closed'][1] < 0
  (source / 'tokenizer_config.json').write_text('{"add_bos_token": false}')
  run('import', f'--source={source}', f'--out={tmp_path}/none')
  assert 0 not in session.open_sampler(tmp_path / 'none', None, None)[0].tokenize('Hi')


@pytest.mark.parametrize('place', ['tokenizer_config.json', 'chat_template.jinja'])
def test_the_chat_template_is_used_and_goes_out_again(tmp_path, place):
  source = model_folder(tmp_path / 'model', 'llama2', writes=2)
  text = json.dumps({'chat_template': TEMPLATE}) if place.endswith('json') else TEMPLATE
  (source / place).write_text(text)
  run('import', f'--source={source}', f'--out={tmp_path}/in')
  row = answers(tmp_path / 'in', tmp_path, '--chat', '--context=Passage.', prompt='Who </s>?')
  assert row['prompt'] == '[ASK] Passage.\n\nWho </s>? [/ASK]' and row['finish'] == 'end'
  assert answers(tmp_path / 'in', tmp_path)['prompt'] == 'Hi'
  sampler, _ = session.open_sampler(tmp_path / 'in', None, None)
  dialogue = [('Hi', 'Yes </s>.')]
  request = session.make_request(sampler, Request(prompt=(0,)), 'Who?', (), dialogue)
  tokens = sampler.tokenize(request.prompt)
  assert tokens.count(2) == 1 and tokens[0] == 1  # the form's own </s>, not that of the answer
  assert sampler.vocab.decode(tokens) == '[ASK] Hi [/ASK]Yes </s>.[ASK] Who? [/ASK]'
  run('export', f'--checkpoint={tmp_path}/in', f'--out={tmp_path}/out')
  written = json.loads((tmp_path / 'out' / 'tokenizer_config.json').read_text())
  assert written['chat_template'] == TEMPLATE and written['eos_token'] == '</s>'
  run('import', f'--source={tmp_path}/out', f'--out={tmp_path}/again')
  assert vocabulary.load(tmp_path / 'again').chat_template == TEMPLATE


def test_a_template_that_cannot_be_used_is_one_line(tmp_path):
  source = model_folder(tmp_path / 'model', 'llama2', writes=2)
  (source / 'chat_template.jinja').write_text('{% generation %}{{ messages }}{% endgeneration %}')
  run('import', f'--source={source}', f'--out={tmp_path}/in')
  assert answers(tmp_path / 'in', tmp_path)['finish'] == 'end'
  with pytest.raises(StageError, match='chat template beside .* cannot be used: .*generation') as e:
    answers(tmp_path / 'in', tmp_path, '--chat')
  assert '\n' not in str(e.value)


def test_several_ends_go_out_again(tmp_path):
  files = {'generation_config.json': {'eos_token_id': [1, 4]}}
  source = model_folder(tmp_path / 'model', 'llama3', writes=4, files=files)
  run('import', f'--source={source}', f'--out={tmp_path}/in')
  run('export', f'--checkpoint={tmp_path}/in', f'--out={tmp_path}/out')
  written = json.loads((tmp_path / 'out' / 'generation_config.json').read_text())
  assert written['eos_token_id'] == [1, 4]
  run('import', f'--source={tmp_path}/out', f'--out={tmp_path}/again')
  vocab = vocabulary.load(tmp_path / 'again')
  assert (vocab.end_ids, vocab.start_ids, vocab.bos_token) == ((1, 4), (0,), '<|begin_of_text|>')


def test_a_tuned_model_goes_out_with_the_form_of_its_tuning(tmp_path):
  source = model_folder(tmp_path / 'model', 'llama2', writes=2)
  run('import', f'--source={source}', f'--out={tmp_path}/in')
  path = tmp_path / 'in' / 'manifest.json'
  content = json.loads(path.read_text())
  content['plan']['arguments']['task'] = {'class': 'InstructionTuning'}
  path.write_text(json.dumps(content))
  run('export', f'--checkpoint={tmp_path}/in', f'--out={tmp_path}/out')
  written = json.loads((tmp_path / 'out' / 'tokenizer_config.json').read_text())
  assert written['chat_template'] == PLAIN.template()


def test_a_prompt_that_spells_a_token_is_text(tmp_path):
  source = model_folder(tmp_path / 'model', 'qwen', writes=2)
  config = {'eos_token': '<|im_end|>', 'pad_token': '<|endoftext|>'}
  (source / 'tokenizer_config.json').write_text(json.dumps(config))
  run('import', f'--source={source}', f'--out={tmp_path}/in')
  sampler, _ = session.open_sampler(tmp_path / 'in', None, None)
  prompt = 'a<|im_end|>\n<|im_start|>system\nb'
  for history in (None, ()):
    request = session.make_request(sampler, Request(prompt=(0,)), prompt, [prompt], history)
    tokens = sampler.tokenize(request.prompt)
    own = 0 if history is None else 2
    assert tokens.count(1) == own and sampler.vocab.decode(tokens).count(prompt) == 2

"""What the files of a model say of its start, its ends and its chat template."""

import json

import pytest

from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.text import model_names

SPELLING = dict(enumerate(['<|begin|>', '<|end|>', '<|turn|>', 'x'])).get


def read(folder, **files):
  for name, content in files.items():
    (folder / f'{name}.json').write_text(json.dumps(content))
  return model_names.read(folder, SPELLING)


def test_all_ends_are_found_wherever_they_are_named(tmp_path):
  assert read(tmp_path).eos_token is None
  names = read(tmp_path, config={'eos_token_id': 1}, generation_config={'eos_token_id': [1, 2, 9]})
  assert (names.eos_token, names.end_tokens) == ('<|end|>', ('<|turn|>',))
  names = read(tmp_path, tokenizer_config={'eos_token': {'content': '<|turn|>'}})
  assert (names.eos_token, names.end_tokens) == ('<|turn|>', ('<|end|>',))


def test_the_start_is_put_first_where_the_files_say_so(tmp_path):
  assert read(tmp_path, config={'bos_token_id': 0}).start_token is None  # the tokenizer says it
  assert read(tmp_path).bos_token == '<|begin|>'
  assert read(tmp_path, tokenizer_config={'add_bos_token': True}).start_token == '<|begin|>'
  assert read(tmp_path, tokenizer_config={'add_bos_token': False}).start_token == ''
  llama = {'tokenizer_class': 'LlamaTokenizerFast', 'bos_token': 'x'}
  assert read(tmp_path, tokenizer_config=llama).start_token == 'x'
  assert read(tmp_path, tokenizer_config={'tokenizer_class': 'Other'}).start_token is None


def test_templates_stand_in_several_places(tmp_path):
  several = [{'name': 'tool_use', 'template': 'A'}, {'name': 'default', 'template': 'B'}]
  assert read(tmp_path).chat_template is None
  assert read(tmp_path, chat_template={'chat_template': 'C'}).chat_template == 'C'
  assert read(tmp_path, tokenizer_config={'chat_template': several}).chat_template == 'B'
  assert read(tmp_path, tokenizer_config={'chat_template': 'D'}).chat_template == 'D'
  (tmp_path / 'chat_template.jinja').write_text('E')
  assert read(tmp_path).chat_template == 'E'


def test_a_broken_file_is_named(tmp_path):
  (tmp_path / 'generation_config.json').write_text('{')
  with pytest.raises(StageError, match='generation_config.json is no JSON'):
    model_names.read(tmp_path, SPELLING)

"""Folders of weights as other people have them: each is read, or refused by one line."""

import json
import re
import shutil

from click.testing import CliRunner
import gguf as gguf_package
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from instructretro_jax import main
from instructretro_jax.interop import gguf, huggingface, megatron
from instructretro_jax.interop.stages import ImportVocabulary, import_alone
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.text import vocabulary
from tests.interop.test_gguf import write_gguf
from tests.interop.test_huggingface import GOLDEN, flat
from tests.text.tokenizer_forms import sentencepiece_model

LLAMA = GOLDEN / 'llama'
POINTER = f'version https://git-lfs.github.com/spec/v1\noid sha256:{"0" * 64}\nsize 12345\n'


def tensors():
  return load_file(LLAMA / 'model.safetensors')


def halves(folder, prefix='', index=None):
  """The model in two shards; the index says so if there is one."""
  whole = tensors()
  names = sorted(whole)
  table = {}
  for n, part in enumerate((names[::2], names[1::2]), 1):
    file = f'model-{n:05d}-of-00002.safetensors'
    save_file({prefix + name: whole[name] for name in part}, folder / file)
    table |= dict.fromkeys(part, file)
  if index is not None:
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': table}))


def wrap(folder, prefix):
  save_file({prefix + name: x for name, x in tensors().items()}, folder / 'model.safetensors')


def only_shards(folder):
  (folder / 'model.safetensors').unlink()
  halves(folder)


def stale_index(folder):
  """The index is of another save, whose shards hold less."""
  halves(folder, index=True)
  path = folder / 'model-00002-of-00002.safetensors'
  some = load_file(path)
  some.pop(sorted(some)[0])
  save_file(some, path)


def index_of_nothing(folder):
  halves(folder, index=True)
  for path in folder.glob('model-0*'):
    path.unlink()


def stale_whole(folder):
  halves(folder, index=True)
  save_file({'model.norm.weight': tensors()['model.norm.weight']}, folder / 'model.safetensors')


READ = {
  'shards without an index': only_shards,
  'a stale index beside a whole file': stale_index,
  'an index whose shards are gone beside a whole file': index_of_nothing,
  'a stale whole file beside shards': stale_whole,
  'names of torch.compile': lambda folder: wrap(folder, '_orig_mod.'),
  'names of data-parallel training': lambda folder: wrap(folder, 'module.'),
  'names of both': lambda folder: wrap(folder, 'module._orig_mod.'),
}


@pytest.fixture
def folder(tmp_path):
  return shutil.copytree(LLAMA, tmp_path / 'model')


@pytest.mark.parametrize('case', READ)
def test_is_read(folder, case):
  READ[case](folder)
  _, found = huggingface.load(folder)
  _, expected = huggingface.load(LLAMA)
  assert flat(found).keys() == flat(expected).keys()
  for path, x in flat(expected).items():
    np.testing.assert_array_equal(flat(found)[path], x, err_msg=path)


def pointer(name):
  return lambda folder: (folder / name).write_text(POINTER)


def adapter(folder):
  for name in ('config.json', 'model.safetensors'):
    (folder / name).unlink()
  content = {'peft_type': 'LORA', 'base_model_name_or_path': 'some/base'}
  (folder / 'adapter_config.json').write_text(json.dumps(content))
  save_file({'base_model.lora_A': np.zeros(2, np.float32)}, folder / 'adapter_model.safetensors')


def lost_shard(folder):
  only_shards(folder)
  (folder / 'model-00002-of-00002.safetensors').unlink()


def foreign_names(folder):
  save_file({f'x.{n}': x for n, x in enumerate(tensors().values())}, folder / 'model.safetensors')


def two_spellings(folder):
  both = tensors()
  save_file(
    both | {'_orig_mod.model.norm.weight': both['model.norm.weight'] + 1},
    folder / 'model.safetensors',
  )


def more_tokens(folder):
  content = json.loads((folder / 'tokenizer.json').read_text())
  first = content['added_tokens'][0]
  content['added_tokens'] += [{**first, 'id': 272 + n, 'content': f'<x{n}>'} for n in range(9)]
  (folder / 'tokenizer.json').write_text(json.dumps(content))


REFUSED = {
  'a pointer for the weights': (pointer('model.safetensors'), 'safetensors is a Git LFS pointer'),
  'a pointer for the tokenizer': (pointer('tokenizer.json'), 'git lfs pull'),
  'a pointer for the configuration': (pointer('config.json'), 'config.json is a Git LFS pointer'),
  'an adapter': (adapter, 'is an adapter of some/base, not a whole model: merge it'),
  'a lost shard': (lost_shard, 'has no model-00002-of-00002.safetensors'),
  'two whole models': (lambda folder: halves(folder, index=True), 'holds the model twice'),
  'no tensor that is known': (foreign_names, 'and 36 more'),
  'one tensor twice': (two_spellings, 'norm.weight is there under two spellings'),
  'an empty file': (lambda folder: (folder / 'config.json').write_text(''), 'config.json is empty'),
  'a list': (lambda folder: (folder / 'config.json').write_text('[]'), 'holds no JSON object'),
  'no configuration': (lambda folder: (folder / 'config.json').unlink(), 'has no config.json'),
  'tokens without a row': (more_tokens, "no embedding for '<x0>'; .* and 3 more"),
}


def refused(*arguments):
  """The one line that a command ends with."""
  result = CliRunner().invoke(main.main, list(map(str, arguments)))
  assert isinstance(result.exception, StageError), result.output or result.exception
  message = str(result.exception)
  assert '\n' not in message and len(message) < 900, message
  return message


@pytest.mark.parametrize('case', REFUSED)
def test_is_refused_by_one_line(folder, case):
  make, expected = REFUSED[case]
  make(folder)
  message = refused('import', f'--source={folder}', f'--out={folder.parent / "out"}')
  assert re.search(expected, message), message
  assert not (folder.parent / 'out').exists()


def split_gguf(folder):
  """The small file of test_gguf.py in two parts, the second with tensors alone."""
  whole = gguf_package.GGUFReader(write_gguf(folder / 'whole.gguf'))
  paths = [folder / f'tiny-{n:05d}-of-00002.gguf' for n in (1, 2)]
  write_gguf(paths[0], without=('output', 'blk.1.ffn_down'), split=(0, 2))
  writer = gguf_package.GGUFWriter(paths[1], 'llama')
  writer.add_uint16('split.count', 2)
  writer.add_uint16('split.no', 1)
  for tensor in whole.tensors:
    if tensor.name in ('output.weight', 'blk.1.ffn_down.weight'):
      writer.add_tensor(tensor.name, np.array(tensor.data))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return paths


def test_a_gguf_in_parts_is_opened_by_any_of_them(tmp_path):
  paths = split_gguf(tmp_path)
  expected_config, expected = gguf.load(tmp_path / 'whole.gguf')
  for path in paths:
    config, found = gguf.load(path)
    assert config == expected_config
    for name, x in flat(expected).items():
      np.testing.assert_array_equal(flat(found)[name], x)
  paths[1].unlink()
  message = refused('import', f'--source={paths[0]}', f'--out={tmp_path}/out')
  assert message.endswith('is one of 2 parts, without tiny-00002-of-00002.gguf')
  renamed = paths[0].rename(tmp_path / 'first.gguf')
  message = refused('import', f'--source={renamed}', f'--out={tmp_path}/out')
  assert 'is one of 2 parts, and its name does not tell the others' in message


@pytest.mark.parametrize('kept', [0, 3, 100, 5000, -1000])
def test_a_gguf_cut_short_is_said_to_be(tmp_path, kept):
  path = write_gguf(tmp_path / 'tiny.gguf')
  content = path.read_bytes()
  path.write_bytes(content[:kept])
  message = refused('import', f'--source={path}', f'--out={tmp_path}/out')
  assert 'GGUF file' in message or 'is empty' in message


def megatron_folder(tmp_path, tracker='20\n', **files):
  inner = tmp_path / 'checkpoint' / 'iter_0000020'
  inner.mkdir(parents=True)
  (inner.parent / 'latest_checkpointed_iteration.txt').write_text(tracker)
  for name, content in files.items():
    (inner / name).write_text(content)
  return inner


@pytest.mark.parametrize('inside', [False, True])
@pytest.mark.parametrize(
  'files',
  [
    {'metadata.json': '{"sharded_backend": "torch_dist"}', 'common.pt': 'x'},
    {'__0_0.distcp': 'x', '.metadata': 'x'},
    {'metadata.json': '{"sharded_backend": "zarr"}'},
  ],
)
def test_distributed_formats_of_megatron_are_named(tmp_path, files, inside):
  inner = megatron_folder(tmp_path, **files)
  source = inner if inside else inner.parent
  message = refused('import', f'--source={source}', f'--out={tmp_path}/out')
  assert 'in a distributed format' in message and '--ckpt-format torch' in message


@pytest.mark.parametrize('tracker', ['', '\n', 'twenty', 'iter_0000020'])
def test_a_tracker_that_names_no_iteration_is_named(tmp_path, tracker):
  inner = megatron_folder(tmp_path, tracker)
  with pytest.raises(StageError, match=r'iteration.txt says .*, not an iteration'):
    megatron.load_lazy(inner.parent)


def test_a_pointer_in_a_megatron_checkpoint_is_named(tmp_path):
  inner = megatron_folder(tmp_path)
  (inner / 'mp_rank_00').mkdir()
  (inner / 'mp_rank_00' / 'model_optim_rng.pt').write_text(POINTER)
  with pytest.raises(StageError, match='git lfs pull'):
    megatron.load_lazy(inner.parent)


def test_a_folder_with_a_sentencepiece_model_alone_is_imported_with_it(folder):
  (folder / 'tokenizer.json').unlink()
  model = sentencepiece_model(
    vocab_size=250, byte_fallback=False, bos_id=3, character_coverage=0.98
  )
  (folder / 'tokenizer.model').write_bytes(model)
  (folder / 'tokenizer_config.json').write_text('{"add_bos_token": true, "bos_token": "<s>"}')
  out = folder.parent / 'out'
  arguments = ['import', f'--source={folder}', f'--out={out}']
  result = CliRunner().invoke(main.main, arguments, catch_exceptions=False)
  assert result.exit_code == 0
  assert (out / 'sentencepiece.model').read_bytes() == model
  assert vocabulary.load(out).start_ids == (3,)
  assert folder / 'tokenizer.model' in ImportVocabulary(source=str(folder)).input_files()


def test_out_may_be_an_empty_folder_and_begin_with_a_tilde(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'out').mkdir()
  shutil.copytree(LLAMA, tmp_path / 'model')
  arguments = ['import', '--source=~/model', '--out=~/out', '--tokenizer=~/model/tokenizer.json']
  assert CliRunner().invoke(main.main, arguments, catch_exceptions=False).exit_code == 0
  assert (tmp_path / 'out' / 'manifest.json').exists()
  assert 'is there already: choose another --out' in refused(*arguments)
  with pytest.raises(StageError, match='is there already'):
    import_alone(str(LLAMA), tmp_path / 'model')

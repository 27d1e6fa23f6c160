"""The reader of torch files: gives tensors, runs nothing, and says which file is broken."""

import argparse
import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from instructretro_jax.interop import torch_pickle, torch_zip
from instructretro_jax.pipeline.manifest import StageError


def write_archive(path, program, storages=()):
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', program)
    for key, content in enumerate(storages):
      archive.writestr(f'archive/data/{key}', content)


def leaf(x):
  return torch_zip.Leaf(x.shape, x.dtype, lambda: x)


def test_gives_back_what_was_written(tmp_path):
  wide = np.arange(6, dtype=np.float32).reshape(2, 3)
  short = wide.astype(ml_dtypes.bfloat16)
  args = argparse.Namespace(num_layers=300, rate=0.5, name='é', flags=(True, None), low=-7)
  torch_zip.save({'args': args, 'model': {'a': leaf(wide), 'b': leaf(short)}}, tmp_path / 'x.pt')
  found = torch_pickle.load(tmp_path / 'x.pt')
  assert found['args'] == args
  np.testing.assert_array_equal(np.asarray(found['model']['a']), wide)
  assert found['model']['b'].dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(np.asarray(found['model']['b']), short)


def test_tensors_are_views_of_the_file(tmp_path):
  torch_zip.save({'a': leaf(np.ones((1000, 100), np.float32))}, tmp_path / 'x.pt')
  view = np.asarray(torch_pickle.load(tmp_path / 'x.pt')['a'])
  assert not view.flags.owndata and not view.flags.writeable


class Runs:
  """Pickles as a call of `os.system`."""

  def __init__(self, command):
    self.command = command

  def __reduce__(self):
    return os.system, (self.command,)


@pytest.mark.parametrize('protocol', [2, 4])
def test_a_file_that_would_run_code_is_refused_by_name(tmp_path, protocol):
  path, trace = tmp_path / 'evil.pt', tmp_path / 'trace'
  write_archive(path, pickle.dumps({'model': Runs(f'touch {trace}')}, protocol=protocol))
  with pytest.raises(StageError, match=r'evil\.pt asks for (posix|nt)\.system'):
    torch_pickle.load(path)
  assert not trace.exists()


@pytest.mark.parametrize(
  'program, name',
  [
    (b'cbuiltins\neval\n(X\x01\x00\x00\x001tR.', 'builtins.eval'),
    (b'cbuiltins\ngetattr\n.', 'builtins.getattr'),
    (b'ctorch.hub\nload\n.', 'torch.hub.load'),
    (b'ctorch\nload\n.', 'torch.load'),
    (b'cargparse\nFileType\n.', 'argparse.FileType'),
    (b'cmegatron.training.arguments\nparse_args\n.', 'megatron.training.arguments.parse_args'),
    (b'\x80\x04\x8c\x08argparse\x8c\x12Namespace.__init__\x93.', 'Namespace.__init__'),
  ],
)
def test_every_other_name_is_refused(tmp_path, program, name):
  write_archive(tmp_path / 'x.pt', program)
  with pytest.raises(StageError, match=name.replace('.', r'\.')):
    torch_pickle.load(tmp_path / 'x.pt')


def test_state_beside_the_weights_is_kept_inert(tmp_path):
  generator = ('MT19937', np.arange(4, dtype=np.uint32), 3)
  enum = b'cmegatron.core.enums\nModelType\n(K\x01tR'
  dtype = b'ctorch\nbfloat16\n'
  state = pickle.dumps(generator, protocol=2)[2:-1]
  program = b'\x80\x02}(X\x01\x00\x00\x00a' + enum + b'X\x01\x00\x00\x00b' + dtype
  write_archive(tmp_path / 'x.pt', program + b'X\x01\x00\x00\x00c' + state + b'u.')
  found = torch_pickle.load(tmp_path / 'x.pt')
  assert isinstance(found['a'], torch_pickle.Inert) and found['a'].args == (1,)
  assert found['b'] == 'torch.bfloat16'
  assert isinstance(found['c'][1], torch_pickle.Inert)


def test_a_tensor_outside_its_storage_is_refused(tmp_path):
  program, _ = torch_zip._pickle({'a': leaf(np.zeros((2, 3), np.float32))})
  long_shape = program.replace(b'\x8a\x01\x02\x8a\x01\x03', b'\x8a\x01\x02\x8a\x01\x63', 1)
  assert long_shape != program
  write_archive(tmp_path / 'x.pt', long_shape, [bytes(24)])
  with pytest.raises(StageError, match=r'shape \(2, 99\).* does not fit its storage of 6'):
    torch_pickle.load(tmp_path / 'x.pt')


@pytest.mark.parametrize('share', [0.0, 0.2, 0.9, 0.999])
def test_a_file_that_is_cut_short_is_named(tmp_path, share):
  path = tmp_path / 'shard.pt'
  torch_zip.save({'a': leaf(np.ones((50, 50), np.float32))}, path)
  whole = path.read_bytes()
  path.write_bytes(whole[: int(len(whole) * share)])
  with pytest.raises(StageError, match=r'shard\.pt cannot be read, it may be cut short'):
    torch_pickle.load(path)


def test_a_storage_that_is_too_short_is_named(tmp_path):
  program, _ = torch_zip._pickle({'a': leaf(np.zeros((2, 3), np.float32))})
  write_archive(tmp_path / 'shard.pt', program, [bytes(20)])
  with pytest.raises(StageError, match=r'shard\.pt: archive/data/0 has 20 bytes, where 6 values'):
    torch_pickle.load(tmp_path / 'shard.pt')


def test_a_broken_pickle_is_named(tmp_path):
  write_archive(tmp_path / 'shard.pt', b'\x80\x02}(X\x01')
  with pytest.raises(StageError, match=r'shard\.pt'):
    torch_pickle.load(tmp_path / 'shard.pt')

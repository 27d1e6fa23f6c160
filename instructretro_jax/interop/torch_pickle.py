"""Reads files of `torch.save` without torch, and without running anything that a file asks for."""

from __future__ import annotations

import argparse
import collections
import dataclasses
from pathlib import Path
import pickle
import re
import struct
from typing import Any
import zipfile

import ml_dtypes
import numpy as np

from instructretro_jax.pipeline.manifest import StageError

STORAGES = {
  'DoubleStorage': np.dtype(np.float64),
  'FloatStorage': np.dtype(np.float32),
  'HalfStorage': np.dtype(np.float16),
  'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'LongStorage': np.dtype(np.int64),
  'IntStorage': np.dtype(np.int32),
  'ShortStorage': np.dtype(np.int16),
  'CharStorage': np.dtype(np.int8),
  'ByteStorage': np.dtype(np.uint8),
  'BoolStorage': np.dtype(np.bool_),
}
_TORCH_DTYPE = re.compile(r'b?float\d+(_\w+)?|u?int\d+|complex\d+|bool|half|float|double|long|int')
_ENUMS = re.compile(r'megatron(\.\w+)*\.enums')
# What a training state holds beside weights (generators, raw bytes): kept as inert placeholders.
_INERT = {
  ('torch', 'device'),
  ('_codecs', 'encode'),
  ('_io', 'BytesIO'),
  ('numpy', 'ndarray'),
  ('numpy', 'dtype'),
  ('numpy.core.multiarray', '_reconstruct'),
  ('numpy.core.multiarray', 'scalar'),
  ('numpy._core.multiarray', '_reconstruct'),
  ('numpy._core.multiarray', 'scalar'),
}


class Inert:
  """Stands for an object that is not rebuilt: its arguments are kept, nothing is called."""

  def __init__(self, *args: Any):
    self.args = args

  def __setstate__(self, state: Any) -> None:
    self.state = state


@dataclasses.dataclass(frozen=True)
class TorchTensor:
  """A tensor in a file; `np.asarray` gives a view of the mapped file."""

  storage: np.ndarray  # one axis, memory-mapped
  offset: int  # in elements
  shape: tuple[int, ...]
  stride: tuple[int, ...]  # in elements

  @property
  def dtype(self) -> np.dtype:
    """The numpy type of its values."""
    return self.storage.dtype

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    step = self.storage.dtype.itemsize
    strides = tuple(s * step for s in self.stride)
    view = np.lib.stride_tricks.as_strided(
      self.storage[self.offset :], self.shape, strides, writeable=False
    )
    return view if dtype is None else view.astype(dtype)


def load(path: Path) -> Any:
  """The content of a file: containers, plain values, `TorchTensor`s.

  Raises StageError, naming the file, if it is cut short or no zip of `torch.save`, or if it asks
  for a class or function other than those that rebuild tensors and plain values.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      pickles = [name for name in archive.namelist() if name.endswith('/data.pkl')]
      if len(pickles) != 1:
        raise StageError(f'{path} is not a file of torch.save: it holds {len(pickles)} data.pkl')
      root = pickles[0].removesuffix('data.pkl')
      if f'{root}byteorder' in archive.namelist() and archive.read(f'{root}byteorder') != b'little':
        raise StageError(f'{path} was written in big-endian byte order')
      with archive.open(pickles[0]) as file:
        return _Unpickler(file, path, _Storages(path, archive, root)).load()
  except StageError:
    raise
  except (zipfile.BadZipFile, EOFError, struct.error, OSError) as error:
    raise StageError(f'{path} cannot be read, it may be cut short: {error}') from error
  except Exception as error:  # whatever a broken pickle makes of the unpickler
    raise StageError(f'{path} holds a broken pickle: {type(error).__name__}: {error}') from error


class _Storages:
  """The storages of one archive, as views of the mapped file."""

  def __init__(self, path: Path, archive: zipfile.ZipFile, root: str):
    self._path, self._archive, self._root = path, archive, root
    self._bytes = np.memmap(path, np.uint8, mode='r')

  def get(self, key: str, dtype: np.dtype, size: int) -> np.ndarray:
    info = self._archive.getinfo(f'{self._root}data/{key}')
    if info.compress_type != zipfile.ZIP_STORED:
      raise StageError(f'{self._path}: {info.filename} is compressed, as torch.save never does')
    if info.file_size != size * dtype.itemsize:
      raise StageError(
        f'{self._path}: {info.filename} has {info.file_size} bytes, where {size} values of '
        f'{dtype} are expected: the file may be cut short'
      )
    header = self._bytes[info.header_offset : info.header_offset + 30].tobytes()
    name_bytes, extra_bytes = struct.unpack('<HH', header[26:30])
    start = info.header_offset + 30 + name_bytes + extra_bytes
    if start + info.file_size > len(self._bytes):
      raise StageError(f'{self._path} ends inside {info.filename}: it is cut short')
    return self._bytes[start : start + info.file_size].view(dtype)


class _Unpickler(pickle.Unpickler):
  """Knows tensors, containers and plain values; refuses every other name."""

  def __init__(self, file: Any, path: Path, storages: _Storages):
    super().__init__(file, encoding='utf-8')
    self._path, self._storages = path, storages

  def persistent_load(self, content: Any) -> np.ndarray:
    kind, dtype, key, _, size = content
    if kind != 'storage' or not isinstance(dtype, np.dtype):
      raise StageError(f'{self._path} refers to {content!r}, which is no storage of a tensor')
    return self._storages.get(key, dtype, size)

  def find_class(self, module: str, name: str) -> Any:
    if module == 'torch' and name in STORAGES:
      return STORAGES[name]
    if module == 'torch' and _TORCH_DTYPE.fullmatch(name):
      return f'torch.{name}'
    if (module, name) in _ALLOWED:
      return _ALLOWED[module, name]
    if (module, name) in _INERT or _ENUMS.fullmatch(module):
      return type(name, (Inert,), {'__module__': module})
    raise StageError(
      f'{self._path} asks for {module}.{name}, which no checkpoint needs: it is refused, and '
      'nothing of the file was run'
    )


def _tensor(storage: np.ndarray, offset: int, shape: tuple, stride: tuple, *_: Any) -> TorchTensor:
  last = offset + sum((n - 1) * s for n, s in zip(shape, stride))
  negative = min((offset, *shape, *stride)) < 0
  if negative or (0 not in shape and last >= len(storage)):
    raise StageError(
      f'a tensor of shape {shape}, stride {stride} and offset {offset} does not fit its storage of '
      f'{len(storage)} values'
    )
  return TorchTensor(storage, offset, tuple(shape), tuple(stride))


_ALLOWED = {
  ('torch._utils', '_rebuild_tensor_v2'): _tensor,
  ('torch._utils', '_rebuild_parameter'): lambda data, *_: data,
  ('torch', 'Size'): tuple,
  ('collections', 'OrderedDict'): collections.OrderedDict,
  ('argparse', 'Namespace'): argparse.Namespace,
  ('builtins', 'set'): set,
  ('__builtin__', 'set'): set,
}

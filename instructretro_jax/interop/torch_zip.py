"""Writes files that `torch.load` reads, without torch: its zip format, tensors one at a time."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
import dataclasses
import math
from pathlib import Path
import struct
from typing import Any
import zipfile

import numpy as np

from instructretro_jax.interop.torch_pickle import STORAGES
from instructretro_jax.pipeline.atomic import atomic

_STORAGE_OF = {dtype: name for name, dtype in STORAGES.items()}


@dataclasses.dataclass(frozen=True)
class Leaf:
  """A tensor to be written: `read` is called once, when its turn comes."""

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]


def save(content: Mapping[str, Any], path: Path) -> None:
  """Writes nested dicts of plain values, namespaces and `Leaf`s; appears whole or not at all.

  Equal content gives equal bytes.
  """
  entry = lambda name: zipfile.ZipInfo(f'{path.stem}/{name}')  # of no date
  program, leaves = _pickle(content)
  with (
    atomic(path) as partial,
    zipfile.ZipFile(partial, 'w', zipfile.ZIP_STORED, allowZip64=True) as archive,
  ):
    archive.writestr(entry('data.pkl'), program)
    archive.writestr(entry('byteorder'), 'little')
    for key, leaf in enumerate(leaves):
      x = np.ascontiguousarray(leaf.read(), leaf.dtype)
      if x.shape != leaf.shape:
        raise ValueError(f'a tensor of shape {x.shape} was announced as {leaf.shape}')
      with archive.open(entry(f'data/{key}'), 'w', force_zip64=True) as file:
        file.write(x.reshape(-1).view(np.uint8).data)
    archive.writestr(entry('version'), '3\n')


def _pickle(content: Mapping[str, Any]) -> tuple[bytes, list[Leaf]]:
  """A pickle of protocol 2, spelt out: the names it refers to need not be importable here."""
  out, leaves = [b'\x80\x02'], []

  def name(module: str, attribute: str) -> None:
    out.append(f'c{module}\n{attribute}\n'.encode())

  def items(pairs: Mapping[str, Any]) -> None:
    out.append(b'(')
    for key, value in pairs.items():
      write(key)
      write(value)
    out.append(b'u')

  def write(value: Any) -> None:
    if value is None:
      out.append(b'N')
    elif isinstance(value, bool):
      out.append(b'\x88' if value else b'\x89')
    elif isinstance(value, int):
      size = value.bit_length() // 8 + 1
      out.append(struct.pack('<BB', 0x8A, size) + value.to_bytes(size, 'little', signed=True))
    elif isinstance(value, float):
      out.append(b'G' + struct.pack('>d', value))
    elif isinstance(value, str):
      encoded = value.encode()
      out.append(b'X' + struct.pack('<I', len(encoded)) + encoded)
    elif isinstance(value, tuple):
      out.append(b'(')
      for x in value:
        write(x)
      out.append(b't')
    elif isinstance(value, Mapping):
      out.append(b'}')
      items(value)
    elif isinstance(value, argparse.Namespace):
      name('argparse', 'Namespace')
      out.append(b')\x81}')  # made without arguments, then given its attributes
      items(vars(value))
      out.append(b'b')
    elif isinstance(value, Leaf):
      tensor(value)
    else:
      raise TypeError(f'{value!r} of {type(value).__name__} cannot be written for torch')

  def tensor(leaf: Leaf) -> None:
    name('torch._utils', '_rebuild_tensor_v2')
    out.append(b'((')
    write('storage')
    name('torch', _STORAGE_OF[leaf.dtype])
    for value in (str(len(leaves)), 'cpu', math.prod(leaf.shape)):
      write(value)
    out.append(b'tQ')  # the tuple names the storage
    stride = tuple(math.prod(leaf.shape[n + 1 :]) for n in range(len(leaf.shape)))
    for value in (0, leaf.shape, stride, False):
      write(value)
    name('collections', 'OrderedDict')
    out.append(b')RtR')
    leaves.append(leaf)

  write(content)
  return b''.join([*out, b'.']), leaves

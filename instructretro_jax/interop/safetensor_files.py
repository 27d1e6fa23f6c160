"""The tensors of a Hugging Face folder, whichever of its files hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
import re

import numpy as np
import safetensors

from instructretro_jax.interop import tensor_table
from instructretro_jax.pipeline import foreign
from instructretro_jax.pipeline.local_copy import local
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.train.lazy_params import LazyArray

TENSOR_FILE = 'model.safetensors'
INDEX_FILE = 'model.safetensors.index.json'
_DTYPES = ('F64', 'F32', 'F16', 'BF16')
_SHARD = re.compile(r'model-(\d+)-of-(\d+)\.safetensors')


def open_tensors(
  folder: Path, is_whole: Callable[[Mapping[str, LazyArray]], bool]
) -> dict[str, LazyArray]:
  """All tensors of a folder by plain name.

  Of a whole file and the shards of an index, those are taken that hold the model (`is_whole`): one
  of the two is often left from another save.

  Raises StageError if there are none, a file of them is missing or damaged, or both hold a model.
  """
  candidates, absent = _candidates(folder)
  if not candidates:
    raise StageError(_why_none(folder, absent))
  found = [_open(folder, names) for names in candidates]
  if len(found) == 1:
    return found[0]
  whole = [tensors for tensors in found if is_whole(tensors)]
  if len(whole) > 1:
    raise StageError(
      f'{folder} holds the model twice, in {TENSOR_FILE} and in the shards of {INDEX_FILE}: remove '
      'the one that is not meant'
    )
  return whole[0] if whole else found[0]


def _candidates(folder: Path) -> tuple[list[list[str]], list[str]]:
  """Sets of files that are there, and the names of those that one of them lacks."""
  sets, absent = [], []
  if (folder / TENSOR_FILE).exists():
    sets.append([TENSOR_FILE])
  if (folder / INDEX_FILE).exists():
    table = foreign.read_json(folder / INDEX_FILE).get('weight_map')
    if not isinstance(table, Mapping) or not table:
      raise StageError(f'{folder / INDEX_FILE} has no weight_map: it is no index of tensors')
    names = sorted(set(map(str, table.values())))
  else:
    shards = [m for path in folder.iterdir() if (m := _SHARD.fullmatch(path.name))]
    count = max((int(match[2]) for match in shards), default=0)
    names = [f'model-{n + 1:05d}-of-{count:05d}.safetensors' for n in range(count)]
  absent = [name for name in names if not (folder / Path(name).name).exists()]
  if names and not absent:
    sets.append([Path(name).name for name in names])
  return sets, absent


def _why_none(folder: Path, absent: Sequence[str]) -> str:
  if absent:
    return f'{folder} has no {foreign.shorten(list(absent))}: fetch the missing part of the model'
  if (folder / 'adapter_config.json').exists():
    return about_adapter(folder)
  return (
    f'{folder} has no {TENSOR_FILE}: only safetensors are read, so let transformers save the model '
    'anew if it has another format'
  )


def about_adapter(folder: Path) -> str:
  """What to do with a folder that holds an adapter and no model."""
  base = foreign.read_json(folder / 'adapter_config.json').get('base_model_name_or_path')
  return (
    f'{folder} is an adapter of {base}, not a whole model: merge it into that model first '
    '(merge_and_unload of the peft library) and give the folder of the merged one'
  )


def _open(folder: Path, names: Sequence[str]) -> dict[str, LazyArray]:
  found, wrong = {}, []
  for name in names:
    foreign.check(folder / name)
    try:
      file = safetensors.safe_open(local(folder / name), framework='numpy')
    except safetensors.SafetensorError as error:
      raise StageError(f'{folder / name} is damaged: {error}') from error
    for key in file.keys():  # noqa: SIM118 (no mapping)
      part = file.get_slice(key)
      if part.get_dtype() not in _DTYPES:
        wrong.append(f'{key} of {name} is {part.get_dtype()}, expected one of {", ".join(_DTYPES)}')
      plain = tensor_table.plain_name(key)
      if plain in found:
        wrong.append(f'{plain} is there under two spellings, one of them {key} of {name}')
      read = lambda file=file, key=key: file.get_tensor(key).astype(np.float32)
      found[plain] = LazyArray(tuple(part.get_shape()), np.dtype(np.float32), read)
  if wrong:
    raise StageError(f'{folder}: {foreign.shorten(wrong)}')
  return found

"""Weights of Megatron-LM and megatron-core in, of legacy Megatron-LM out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from pathlib import Path
import re
from typing import Any

from flax import traverse_util
import numpy as np

from instructretro_jax.array_types import Params
from instructretro_jax.interop import megatron_args, megatron_files, torch_zip
from instructretro_jax.interop.megatron_layout import CORE, LEGACY, Names, Part, Tensor, tensors
from instructretro_jax.model.config import RetroConfig
from instructretro_jax.model.param_groups import has_retrieval
from instructretro_jax.pipeline import foreign
from instructretro_jax.pipeline.atomic import atomic
from instructretro_jax.pipeline.manifest import StageError, write_text
from instructretro_jax.train.lazy_params import LazyArray, LazyParams, read_all

_RETRIEVAL = re.compile(r'inter_attention|retriever|cross_attention')


def load(
  source: str | Path | Mapping[str, Any],
  config: RetroConfig | None = None,
  *,
  dtype: str = 'float32',
  vocab_size: int | None = None,
) -> tuple[RetroConfig, Params]:
  """Configuration and parameters of a checkpoint, all in memory; arguments of `load_lazy`."""
  config, lazy = load_lazy(source, config, dtype=dtype, vocab_size=vocab_size)
  return config, read_all(lazy)


def load_lazy(
  source: str | Path | Mapping[str, Any],
  config: RetroConfig | None = None,
  *,
  dtype: str = 'float32',
  vocab_size: int | None = None,
) -> tuple[RetroConfig, LazyParams]:
  """Configuration of a checkpoint, and its parameters to be read one by one.

  Everything is checked here: once this returns, reading a parameter can fail with the disk only.

  Args:
    source: folder of a checkpoint (its root, or one iteration), a .pt file, an .npz with keys
      `param/NAME` and a `config_json`, or a state dict, nested or flat. Any tensor-parallel degree,
      and pipeline stages. A plain GPT gives the decoder's parameters alone.
    config: the model; needed where the source does not tell it.
    dtype: of the parameters.
    vocab_size: rows of the vocabulary to keep. Megatron pads it to a multiple, and the padding
      takes part in its softmax: it is kept if this is not given.

  Raises StageError, naming file and reason; unknown, missing and wrongly shaped tensors are listed
  in one error.
  """
  checkpoint = megatron_files.read(source)
  present = set().union(*checkpoint.ranks)
  is_core = any(name.startswith('decoder.') for name in present)
  with_retrieval = any(_RETRIEVAL.search(name) for name in present)
  config = config or checkpoint.config
  if config is None:
    if checkpoint.args is None:
      raise StageError(f'{checkpoint.label} does not tell its model: pass the configuration too')
    config = megatron_args.to_config(checkpoint.args, present, is_core=is_core)
    with_retrieval |= megatron_args.has_retriever(checkpoint.args)
  expected = list(tensors(config, CORE if is_core else LEGACY, with_retrieval))
  _check(expected, checkpoint)
  lazy = {
    part.path: _lazy(tensor, n, part, [rank[tensor.name] for rank in checkpoint.ranks], dtype)
    for tensor in expected
    for n, part in enumerate(tensor.parts)
  }
  return _keep_vocabulary(config, lazy, vocab_size)


def state_dict(config: RetroConfig, params: Params, names: Names = LEGACY) -> dict[str, np.ndarray]:
  """The same numbers under Megatron's names (one rank, any dtype; also fits gradients)."""
  flat = traverse_util.flatten_dict(params, sep='/')
  layout = tensors(config, names, with_retrieval=has_retrieval(params))
  return {t.name: t.pack([np.asarray(flat[part.path]) for part in t.parts]) for t in layout}


def save(
  config: RetroConfig, params: Params | LazyParams, folder: Path, tensor_parallel: int = 1
) -> None:
  """Writes a checkpoint of legacy Megatron-LM: FOLDER/release/mp_rank_*/model_optim_rng.pt.

  It appears whole or not at all.

  Args:
    params: nested arrays, or `LazyParams`; a parameter is in memory only while it is written.

  Raises StageError, before it writes, if Megatron has no name for a part of the model, or cannot
  cut it for `tensor_parallel` ranks.
  """
  flat = traverse_util.flatten_dict(params, sep='/')
  with_retrieval = has_retrieval(flat)
  args = megatron_args.from_config(config, with_retrieval, tensor_parallel)
  layout = list(tensors(config, LEGACY, with_retrieval))
  named = {part.path for tensor in layout for part in tensor.parts}
  if set(flat) != named:
    raise StageError(f'parameters that do not fit the configuration: {sorted(set(flat) ^ named)}')
  with atomic(folder) as partial:
    for rank in range(tensor_parallel):
      model: dict[str, Any] = {}
      for tensor in layout:
        leaf = torch_zip.Leaf(
          tensor.shard_shape(tensor_parallel),
          np.dtype(flat[tensor.parts[0].path].dtype),
          lambda tensor=tensor: tensor.pack(
            [_cut(flat[part.path], part.axis, rank, tensor_parallel) for part in tensor.parts]
          ),
        )
        _put(model, tensor.name, leaf)
      content = {
        'args': args,
        'checkpoint_version': 3.0,
        'iteration': 0,
        'model': {'language_model': model},
      }
      torch_zip.save(content, partial / 'release' / f'mp_rank_{rank:02d}' / 'model_optim_rng.pt')
    write_text(partial / megatron_files.TRACKER, 'release')


def _check(expected: Sequence[Tensor], checkpoint: megatron_files.Checkpoint) -> None:
  """Raises one StageError that lists everything that does not fit."""
  num_ranks = len(checkpoint.ranks)
  wanted = {tensor.name: tensor.shard_shape(num_ranks) for tensor in expected}
  unknown, missing, misshapen = [], [], []
  for number, rank in enumerate(checkpoint.ranks):
    where = f' (tensor-parallel rank {number})' if num_ranks > 1 else ''
    unknown += [f'{name}{where}' for name in sorted(set(rank) - set(wanted))]
    missing += [f'{name}{where}' for name in sorted(set(wanted) - set(rank))]
    for name, shape in wanted.items():
      if name in rank and tuple(rank[name].shape) != shape:
        misshapen.append(f'{name}{where}: {tuple(rank[name].shape)}, expected {shape}')
  problems = {'unknown': unknown, 'missing': missing, 'wrong shape': misshapen}
  if any(problems.values()):
    said = [f'{kind} ({len(n)}): {foreign.shorten(n)}' for kind, n in problems.items() if n]
    raise StageError(
      f'{checkpoint.label} does not hold the model that its configuration describes: '
      + '. '.join(said)
    )


def _lazy(tensor: Tensor, n: int, part: Part, ranks: Sequence[Any], dtype: str) -> LazyArray:
  def read() -> np.ndarray:
    shards = ranks if part.axis is not None else ranks[:1]
    out = np.empty(part.shape, dtype)
    start = 0
    for shard in shards:
      x = tensor.unpack(np.asarray(shard), n)
      end = start + (x.shape[part.axis] if part.axis is not None else 0)
      out[_slice(part.axis, start, end)] = x
      start = end
    return out

  return LazyArray(part.shape, np.dtype(dtype), read)


def _slice(axis: int | None, start: int, end: int) -> tuple[slice, ...]:
  return () if axis is None else (slice(None),) * axis + (slice(start, end),)


def _cut(x: Any, axis: int | None, rank: int, num_ranks: int) -> np.ndarray:
  array = x.read() if isinstance(x, LazyArray) else np.asarray(x)
  if axis is None:
    return array
  size = array.shape[axis] // num_ranks
  return array[_slice(axis, rank * size, (rank + 1) * size)]


def _put(model: dict[str, Any], name: str, leaf: Any) -> None:
  """Files a tensor as Megatron nests it: modules of the language model, flat below the stack."""
  module, _, rest = name.partition('.')
  if module == 'embedding':
    inner, _, leaf_name = rest.partition('.')
    model.setdefault(module, {}).setdefault(inner, {})[leaf_name] = leaf
  else:
    model.setdefault(module, {})[rest] = leaf


def _keep_vocabulary(
  config: RetroConfig, lazy: dict[str, LazyArray], vocab_size: int | None
) -> tuple[RetroConfig, LazyParams]:
  if vocab_size is None or vocab_size == config.decoder.vocab_size:
    return config, lazy
  if vocab_size > config.decoder.vocab_size:
    raise StageError(f'vocab_size {vocab_size} of {config.decoder.vocab_size} rows')
  width = config.decoder.width
  for path, shape, axis in (
    ('embedding/table', (vocab_size, width), 0),
    ('head', (width, vocab_size), 1),
  ):
    if path in lazy:
      whole = lazy[path].read
      cut = lambda whole=whole, axis=axis: whole()[_slice(axis, 0, vocab_size)]
      lazy[path] = LazyArray(shape, lazy[path].dtype, cut)
  decoder = dataclasses.replace(config.decoder, vocab_size=vocab_size)
  return dataclasses.replace(config, decoder=decoder), lazy

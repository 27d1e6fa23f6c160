"""Finds the files of a Megatron checkpoint and brings their tensors under one spelling."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
import dataclasses
import json
from pathlib import Path
import re
from typing import Any

import numpy as np

from instructretro_jax.interop import torch_pickle
from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.pipeline import foreign
from instructretro_jax.pipeline.local_copy import local
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.pipeline.paths import to_path

TRACKER = 'latest_checkpointed_iteration.txt'
_SHARD = re.compile(r'mp_rank_(\d+)(?:_(\d+))?')
_FILES = ('model_optim_rng.pt', 'model_rng.pt')
_IGNORED = re.compile(r'_extra_state|rotary_pos_emb|inv_freq|word_embeddings_for_head')


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """The tensors of each tensor-parallel rank, by canonical name, and what says their model."""

  label: str
  ranks: list[dict[str, Any]]  # arrays or `TorchTensor`s
  args: argparse.Namespace | None = None
  config: RetroConfig | None = None


def read(source: str | Path | Mapping[str, Any]) -> Checkpoint:
  """What `megatron.load_lazy` takes, opened; tensors stay in their files."""
  if isinstance(source, Mapping):
    args = source.get('args')
    return Checkpoint('the state dict', [_canonical(source.get('model', source))], args)
  path = local(to_path(source))
  if not path.exists():
    raise StageError(f'{path} does not exist')
  if path.suffix == '.npz':
    return _read_npz(path)
  if path.is_file():
    content = _content(path)
    return Checkpoint(str(path), [_canonical(content['model'])], content.get('args'))
  return _read_folder(_iteration(path))


def _read_folder(folder: Path) -> Checkpoint:
  stages_of: dict[int, dict[int, Path]] = {}
  for path in sorted(folder.iterdir()):
    if match := _SHARD.fullmatch(path.name):
      files = [path / name for name in _FILES if (path / name).exists()]
      if not files:
        raise StageError(f'{path} holds none of {_FILES}')
      stages_of.setdefault(int(match[1]), {})[int(match[2] or 0)] = files[0]
  if not stages_of:
    _refuse_distributed(folder)
    raise StageError(f'{folder} holds no mp_rank_* folder: it is no checkpoint of Megatron')
  ranks, args = [], None
  for stages in (stages_of[rank] for rank in sorted(stages_of)):
    contents = [_content(stages[stage]) for stage in sorted(stages)]
    args = args or contents[0].get('args')
    ranks.append(_join_stages([_canonical(content['model']) for content in contents]))
  expected = [getattr(args, f'{kind}_model_parallel_size', None) for kind in ('tensor', 'pipeline')]
  for kind, there, asked in zip(
    ('tensor', 'pipeline'), ({*stages_of}, {*stages_of[min(stages_of)]}), expected
  ):
    if missing := {*range(asked or len(there))} - there:
      raise StageError(f'{folder}: {kind}-parallel ranks {sorted(missing)} of {asked} are missing')
  return Checkpoint(str(folder), ranks, args)


def _refuse_distributed(folder: Path) -> None:
  """Raises StageError for the formats of torch.distributed and zarr, which are the default now."""
  names = {path.name for path in folder.iterdir()}
  backend = 'torch_dist' if any(name.endswith('.distcp') for name in names) else None
  if backend is None and 'metadata.json' in names:
    backend = foreign.read_json(folder / 'metadata.json').get('sharded_backend')
  if backend is not None or '.metadata' in names:
    raise StageError(
      f'{folder} is a Megatron checkpoint in a distributed format ({backend or "torch_dist"}), '
      'which is not read: let Megatron save it again with --ckpt-format torch'
    )


def _iteration(folder: Path) -> Path:
  """The folder of the latest iteration; `folder` itself if it already is one."""
  if any(_SHARD.fullmatch(p.name) for p in folder.iterdir()):
    return folder
  if (folder / TRACKER).exists():
    latest = (folder / TRACKER).read_text(errors='replace').strip()
    if latest != 'release' and not latest.isdecimal():
      raise StageError(
        f'{folder / TRACKER} says {latest[:40]!r}, not an iteration: write its number there, or '
        'give the folder of one iteration'
      )
    chosen = folder / (latest if latest == 'release' else f'iter_{int(latest):07d}')
    if not chosen.is_dir():
      raise StageError(f'{folder / TRACKER} names {latest}, but {chosen} is missing')
    return chosen
  found = [*sorted(folder.glob('iter_*')), *folder.glob('release')]
  if not found:
    _refuse_distributed(folder)
    raise StageError(
      f'{folder} is no model: it holds no config.json (Hugging Face), and neither iter_* nor '
      'release (Megatron)'
    )
  return found[-1]


def _content(path: Path) -> dict[str, Any]:
  foreign.check(path)
  content = torch_pickle.load(path)
  if not isinstance(content, dict) or not isinstance(content.get('model'), Mapping):
    kind = list(content) if isinstance(content, dict) else type(content).__name__
    raise StageError(f'{path} holds {kind}, not one "model" (virtual pipelines are not supported)')
  if (version := content.get('checkpoint_version', 3.0)) < 2:
    raise StageError(f'{path} has checkpoint_version {version}; its order of rows ended with 2.0')
  return content


def _join_stages(stages: list[dict[str, Any]]) -> dict[str, Any]:
  """Layers of a pipeline stage count from 0: moves them behind those of the stages before."""
  whole, done = {}, 0
  layer = re.compile(r'^((?:en|de)coder\.layers\.)(\d+)')
  for stage in stages:
    numbers = [int(match[2]) for name in stage if (match := layer.match(name))]
    for name, x in stage.items():
      whole[layer.sub(lambda m: f'{m[1]}{int(m[2]) + done}', name)] = x  # noqa: B023
    done += max(numbers, default=-1) + 1
  return whole


def _read_npz(path: Path) -> Checkpoint:
  """Keys `param/NAME`, and the case in `config_json`."""
  foreign.check(path)
  with np.load(path) as content:
    state = {k.removeprefix('param/'): content[k] for k in content.files if k.startswith('param/')}
    case = json.loads(str(content['config_json']))['case'] if 'config_json' in content else None
  if not state:
    raise StageError(f'{path} has no array named param/...')
  table = state.get('embedding.position_embeddings.weight')
  max_len = DecoderConfig.max_len if table is None else len(table)
  config = case and config_of_case(case, max_len)
  return Checkpoint(str(path), [_canonical(state)], config=config)


def config_of_case(case: Mapping[str, Any], max_len: int) -> RetroConfig:
  """The model of a case file: its `config_json` lists these fields under "case"."""
  learned = case['position'] == 'learned_absolute'
  return RetroConfig(
    decoder=DecoderConfig(
      vocab_size=case['vocab'],
      num_layers=case['layers'],
      width=case['hidden'],
      num_heads=case['heads'],
      ff_width=case['ffn'],
      activation=case['activation'],
      norm='layernorm',
      norm_eps=case['norm_eps'],
      positions='learned' if learned else 'rotary',
      rotary_fraction=case['rotary_percent'],
      max_len=max_len,
      use_bias=case['bias'],
      tie_embeddings=case['tied'],
      final_norm=case['final_norm'],
    ),
    chunk_len=case['chunk'],
    encoder_layers=case['encoder_layers'],
    encoder_residual='normed' if case['encoder_residual'] == 'normed' else 'hidden',
  )


def _canonical(model: Mapping[str, Any]) -> dict[str, Any]:
  """One flat dict with the names of `megatron_layout`, whatever the age of the checkpoint."""
  renamed: dict[str, Any] = {}
  for name, x in _flatten(model):
    if _IGNORED.search(name):
      continue
    new = _rename(name)
    if new in renamed:
      raise StageError(f'the checkpoint holds {new} under two spellings')
    renamed[new] = x
  return renamed


def _flatten(tree: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  for name, x in tree.items():
    if isinstance(x, Mapping):
      yield from _flatten(x, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', x


def _rename(name: str) -> str:
  name = re.sub(r'^(module\.)*(language_model\.)?', '', name)
  name = re.sub(r'^transformer\.', 'encoder.', name)
  if name.startswith('encoder.'):
    name = name.replace('layernorm', 'norm').replace('.attention.', '.self_attention.')
  # TransformerEngine fuses a norm with the linear map after it
  name = name.replace('self_attention.linear_qkv.layer_norm_', 'input_layernorm.')
  return name.replace('mlp.linear_fc1.layer_norm_', 'pre_mlp_layernorm.')

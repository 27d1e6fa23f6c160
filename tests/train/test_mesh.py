"""Which mesh an arm gets, and that no device computes the part of another unsaid."""

import dataclasses
import types

from hypothesis import given
from hypothesis import strategies as st
import jax
from jax.sharding import AbstractMesh
import pytest

from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.model.sharding import MESH_AXES, MeshConfig
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.train import mesh

SIZES = st.integers(1, 64)
DECODER = DecoderConfig(
  vocab_size=320, num_layers=1, width=32, num_heads=8, ff_width=48, width_per_head=4
)
MODEL = RetroConfig(decoder=DECODER, encoder_ff_width=16, cross_attention_layers=(0,))


def mesh_of(*shape):
  return AbstractMesh(shape, MESH_AXES)


@given(batch=SIZES, microbatches=st.integers(1, 8), fsdp=st.integers(1, 4), most=st.integers(1, 9))
def test_the_largest_split_is_even_and_no_larger_one_is(batch, microbatches, fsdp, most):
  found = mesh.largest_split(batch, fsdp, most)
  evenly = [d for d in range(1, most + 1) if (batch / (d * fsdp)).is_integer()]
  assert found == (evenly[-1] if evenly else 0)
  # of a batch and its parts, what is taken is not refused, and what is refused names what is not
  batch *= microbatches
  if found:
    mesh.check_batch(batch, microbatches, mesh_of(found, fsdp, 1))
  if batch % (microbatches * most * fsdp):
    with pytest.raises(StageError) as raised:
      mesh.check_batch(batch, microbatches, mesh_of(most, fsdp, 1))
    words = str(raised.value).partition('give a batch size of ')[2].replace(',', ' ').split()
    sizes = [int(words[0])] + ([int(words[2])] if words[1] == 'or' and words[2].isdigit() else [])
    assert sizes[-1] > batch and len(sizes) == 1 + (batch > microbatches * most * fsdp)
    for size in sizes:
      mesh.check_batch(size, microbatches, mesh_of(most, fsdp, 1))


def test_explicit_sizes_that_do_not_divide_a_batch_are_refused():
  with pytest.raises(StageError, match='a batch of 12 cannot be split over 8 dev.* of 8 or 16, or'):
    mesh.training_mesh(MeshConfig(data=8), 12)
  with pytest.raises(StageError, match='16 in 16 microbatches .*size of 128, num_microbatches 2,'):
    mesh.training_mesh(MeshConfig(data=8), 16, 16)
  with pytest.raises(StageError, match='a batch of 6 cannot be split over 8 devices'):
    mesh.training_mesh(MeshConfig(fsdp=4), 6)  # whatever -1 is
  with pytest.raises(StageError, match='data 3 x fsdp 1 x tensor 1 does not fit 8 devices: set'):
    mesh.training_mesh(MeshConfig(data=3), 12)
  with pytest.raises(StageError, match='a batch of 6 cannot be split over 4'):
    mesh.evaluation_mesh(MeshConfig(data=4), 6)
  assert mesh.training_mesh(MeshConfig(data=4, tensor=2), 16, 4).shape['data'] == 4


def test_devices_that_a_batch_cannot_use_are_idle_and_said(capsys):
  assert mesh.training_mesh(MeshConfig(), 24, 3).size == 8
  assert not capsys.readouterr().err
  small = mesh.training_mesh(MeshConfig(), 2)
  assert small.devices.ravel().tolist() == jax.devices()[:2]
  assert capsys.readouterr().err == (
    'a batch of 2 is split over 2 of 8 devices, the others are idle: a batch_size that is a '
    'multiple of 8 uses all\n'
  )
  assert dict(mesh.training_mesh(MeshConfig(tensor=2), 12, 4).shape) == {
    'data': 3, 'fsdp': 1, 'tensor': 2
  }  # fmt: skip
  assert '12 in 4 microbatches is split over 6 of 8' in capsys.readouterr().err


def test_a_process_without_a_device_is_refused(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 4)
  with pytest.raises(StageError, match='over 2 of 8 devices, but each of the 4 .*multiple of 8'):
    mesh.training_mesh(MeshConfig(), 2)


def test_every_process_has_about_as_many_devices():
  devices = [types.SimpleNamespace(id=n, process_index=n // 4) for n in range(8)]
  ids = lambda count: [device.id for device in mesh.spread(devices, count)]
  assert [ids(2), ids(5), ids(8)] == [[0, 4], [0, 1, 2, 4, 5], list(range(8))]


@pytest.mark.parametrize(
  'changes, shape, expected',
  [
    ({}, (1, 2, 8), None),
    ({'num_heads': 4}, (1, 1, 8), r'tensor 8 .* heads \(4\).*: tensor can be 1, 2, 4$'),
    ({'vocab_size': 321}, (1, 1, 2), r'tensor 2 .* vocab \(321\), .*: tensor can be 1$'),
    ({'ff_width': 44}, (1, 1, 8), r'tensor 8 .* mlp \(44\), .*: tensor can be 1, 2, 4$'),
    ({'width': 36}, (1, 8, 1), r'fsdp 8 .* embed \(36\), .*: fsdp can be 1, 2, 3, 4, 6$'),
    # each device has the one key/value head of its queries
    ({'num_kv_heads': 2}, (1, 1, 8), None),
    ({'num_kv_heads': 1}, (1, 1, 8), None),
    ({'num_kv_heads': 6, 'num_heads': 24}, (1, 1, 8), r'kv_heads \(6\), .*can be 1, 2$'),
  ],
)
def test_parameters_that_would_be_whole_are_refused(changes, shape, expected, capsys):
  model = dataclasses.replace(MODEL, decoder=dataclasses.replace(DECODER, **changes))
  if expected is None:
    mesh.check_params(model, True, mesh_of(*shape))
    return
  with pytest.raises(StageError, match=expected):
    mesh.check_params(model, True, mesh_of(*shape))
  mesh.note_whole(model, True, mesh_of(*shape))
  assert 'whole' in capsys.readouterr().err

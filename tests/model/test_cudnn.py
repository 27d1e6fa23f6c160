"""cuDNN's attention without a GPU: what it is given, emulated, and what is compiled for one."""

import re

import jax
from jax._src.cudnn import fused_attention_stablehlo as fused
import jax.numpy as jnp
import numpy as np
import pytest

from instructretro_jax.model import cudnn
from instructretro_jax.model.kernels import attend_causally, causal_mask
from instructretro_jax.model.sharding import MeshConfig, make_mesh
from tests.reference.cudnn import packed_attention

A, L = 8, 200  # of head width and tokens; room for 4 documents


def row(*documents):
  """Numbers of the documents of a row, from pairs (number, tokens); 0 is padding."""
  return np.repeat(*np.array(documents).T)


SEGMENTS = {
  'padding within and behind': row((1, 30), (0, 34), (2, 64), (3, 1), (0, 71)),
  'as many as there is room for': row((1, 1), (2, 2), (3, 100), (4, 97)),
  'padding before': row((0, 5), (1, 120), (0, 3), (2, 72)),
  'one': row((1, L)),
  'nothing but padding': row((0, L)),
}


def inputs(batch_size, num_heads, kv_heads, dtype='float32', length=L):
  keys = jax.random.split(jax.random.key(0), 3)
  make = lambda key, heads: jax.random.normal(key, (batch_size, length, heads, A), dtype)
  return [make(key, heads) for key, heads in zip(keys, (num_heads, kv_heads, kv_heads))]


@pytest.fixture
def emulated(monkeypatch):
  monkeypatch.setattr(fused, 'dot_product_attention', packed_attention)


@pytest.fixture
def on_hopper(monkeypatch):
  """What the library asks of the machine while it traces."""
  monkeypatch.setattr(fused, 'check_cudnn_version', lambda: 91000)
  with cudnn.assuming_hopper():
    yield


def test_what_the_kernel_is_given_is_attention_by_document(emulated):
  segments = np.stack(list(SEGMENTS.values()))
  q, k, v = inputs(len(segments), 4, 2)
  is_real = (segments > 0)[:, :, None, None]
  weights = is_real * np.cos(np.arange(q.size)).reshape(q.shape)
  mask = causal_mask(segments, L)

  def found(attend):
    value, gradients = jax.vjp(attend, q, k, v)
    return value, *gradients(weights.astype(np.float32))

  ours = found(lambda q, k, v: attend_causally(q, k, v, segments, 'cudnn'))
  plain = found(jax.jit(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=mask)))
  assert np.isfinite(ours[0]).all()  # padding too: what is not a number spreads by products with 0
  np.testing.assert_allclose(is_real * ours[0], is_real * plain[0], atol=2e-6)
  for a, b in zip(ours[1:], plain[1:]):
    np.testing.assert_allclose(a, b, atol=5e-6)


def test_a_row_with_too_many_documents_is_nan_and_no_other(emulated):
  segments = np.stack([row((1, 100), (2, 100)), np.arange(L) // 40, row((1, L))])
  q, k, v = inputs(3, 2, 2)
  found = attend_causally(q, k, v, segments, 'cudnn')
  assert np.isnan(found).all(axis=(1, 2, 3)).tolist() == [False, True, False]
  segments[1] = 1
  mended = attend_causally(q, k, v, segments, 'cudnn')
  np.testing.assert_array_equal(found[::2], mended[::2])
  assert np.isfinite(mended).all()


def test_every_chunk_may_be_a_document():
  segments = 1 + np.arange(512)[None] // cudnn.TOKENS_PER_DOCUMENT
  lengths, starts, fits = cudnn.packed_documents(segments)
  assert lengths.tolist() == [[64] * 8] and fits.all()
  assert starts.tolist() == [[*range(0, 512, 64), -1]]


def compiled_for(attend, *arguments):
  return jax.jit(attend).trace(*arguments).lower(lowering_platforms=('cuda',)).as_text()


@pytest.mark.parametrize('mesh', [None, MeshConfig(data=2, tensor=2)], ids=['one', 'four'])
def test_no_array_of_the_size_of_the_scores_is_lowered_for_a_gpu(on_hopper, mesh):
  length = 1024
  q, k, v = inputs(2, 4, 2, 'bfloat16', length)
  segments = jnp.ones((2, length), int)
  loss = lambda q, k, v: attend_causally(q, k, v, segments, 'cudnn').astype('float32').sum()
  run = lambda: compiled_for(jax.value_and_grad(loss, (0, 1, 2)), q, k, v)
  if mesh is None:
    text, batch = run(), 2
  else:
    with jax.set_mesh(make_mesh(mesh, jax.devices()[:4])):
      text, batch = run(), 1
  assert not re.search(rf'\b{length}x{length}\b', text)
  for name, num_given in (('fmhaSoftmax', 7), ('fmhaSoftmaxBackward', 10)):
    (call,) = re.findall(rf'custom_call @__cudnn\${name}\((.*?)\)(.*)', text)
    assert call[0].count('%') == num_given, name  # with lengths and offsets
    assert f'tensor<{batch}x16xi32>' in call[1] and f'tensor<{batch}x17xi32>' in call[1]
    assert 'PADDING_CAUSAL' in call[1] and r'max_seg_per_batch\22: 16' in call[1]


def test_one_document_needs_no_packing(on_hopper):
  q, k, v = inputs(2, 4, 2, 'bfloat16')
  text = compiled_for(lambda q, k, v: attend_causally(q, k, v, None, 'cudnn'), q, k, v)
  (given, call) = re.search(r'custom_call @__cudnn\$fmhaSoftmax\((.*?)\)(.*)', text).groups()
  assert given.count('%') == 3 and r'mask_type\22: \22CAUSAL' in call

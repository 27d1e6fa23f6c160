"""Incremental decoding against the full forward pass of every row alone, position by position."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instructretro_jax.inference.cache import compile_step, prefill
from instructretro_jax.inference.decode import left_pad, without_retrieval
from instructretro_jax.model.retro import Retro
from instructretro_jax.model.rotary_scaling import YarnScaling
from tests.model.test_retro import CONFIG, DECODER, init, logits, make_inputs

C, K, R = 4, 2, 8
NUM_NEW = 2 * C  # two chunks end during generation
LENGTHS = (7, 3)  # prompts fill 8: one begins inside a chunk, one leaves a whole chunk empty
PADDED = 8
ATOL = 1e-5


@functools.cache
def params_of(config):
  return init(config, make_inputs(8))


def make_rows(lengths=LENGTHS, seed=1):
  """Rows with NUM_NEW tokens behind their prompts, neighbours for all chunks; some are missing."""
  rng = np.random.default_rng(seed)
  num_chunks = (PADDED + NUM_NEW) // C
  rows = [rng.integers(0, 32, n + NUM_NEW) for n in lengths]
  neighbours = rng.integers(0, 32, (len(rows), num_chunks, K, R))
  mask = np.ones(neighbours.shape, bool)
  mask[:, :, 1, 5:] = False  # the second neighbours are short
  mask[0, 1] = False  # the last whole chunk of a prompt has none
  mask[1, 2] = False  # nor has a chunk of new tokens
  return rows, neighbours, mask


def cached_logits(config, params, rows, neighbours, mask, gate, segments=None):
  """Logits [B, NUM_NEW + 1, V] from the last prompt token on, one token at a time."""
  lengths = [len(row) - NUM_NEW for row in rows]
  is_open = not isinstance(gate, int)
  prompts, lengths = left_pad([row[:n] for row, n in zip(rows, lengths)], PADDED)
  N = PADDED // C
  given = (neighbours[:, :N], mask[:, :N]) if is_open else ()
  start = jax.jit(
    lambda params, gate: Retro(config).apply(
      {'params': params},
      prompts,
      lengths,
      *given,
      max_len=PADDED + NUM_NEW,
      gate=gate if is_open else 0,
      segments_BP=segments,
      method=prefill,
    )
  )
  cache, scores = start(params, gate)
  step, found = compile_step(Retro(config), is_open), [scores]
  for t in range(NUM_NEW):
    chunk = N + t // C  # given from its first token on, encoded with its last
    given = (neighbours[:, chunk], mask[:, chunk]) if is_open else ()
    token = np.array([row[len(row) - NUM_NEW + t] for row in rows])
    cache, scores = step(params, cache, token, *given, gate=gate)
    found.append(scores)
  return np.stack(found, axis=1)


def check(config, params, rows, neighbours, mask, gate, segments=None):
  found = cached_logits(config, params, rows, neighbours, mask, gate, segments)
  length = max(map(len, rows))
  for b, row in enumerate(rows):
    n, behind = len(row) - NUM_NEW, length - len(row)  # whole chunks behind, to compile once
    documents = np.ones(n, np.int32) if segments is None else segments[b, PADDED - n :]
    documents = np.pad(documents, (0, length - n), 'edge')
    # the model aligns chunks with the end of a sequence, as left padding does
    chunks = PADDED // C - -(-n // C) + np.arange(-(-length // C))
    chunks = np.minimum(chunks, neighbours.shape[1] - 1)
    own_gate = gate[b] if isinstance(gate, jax.Array) and gate.ndim else gate
    inputs = (np.pad(row, (0, behind)), documents, neighbours[b, chunks], mask[b, chunks])
    expected = logits(config, params, *(x[None] for x in inputs), gate=own_gate)[0]
    expected = expected[n - 1 : n + NUM_NEW]
    np.testing.assert_allclose(found[b], expected, atol=ATOL, rtol=0)


def with_decoder(decoder=(), **changes):
  decoder = dataclasses.replace(DECODER, **dict(decoder))
  return dataclasses.replace(CONFIG, decoder=decoder, **changes)


@pytest.mark.parametrize(
  'config, gate',
  [
    (CONFIG, 1.0),
    (
      with_decoder(
        {'num_kv_heads': 1, 'rotary_scaling': YarnScaling(factor=4.0, original_max_len=8),
         'norm_placement': 'output', 'qk_norm': True, 'qk_norm_across_heads': True},
        value_shift=1,
        encoder_width=12,
        encoder_heads=3,
        encoder_width_per_head=6,
      ),
      jnp.array([1.0, 0.3]),
    ),
    (
      with_decoder(
        {'positions': 'learned', 'max_len': 15, 'use_bias': True, 'norm': 'layernorm'},
        mask_neighbours=False,
        cross_attention_layers=(1,),
      ),
      jnp.array(0.6),
    ),
    (
      with_decoder(
        {'rotary_fraction': 0.5, 'rotary_interleaved': True, 'tie_embeddings': False,
         'parallel_residual': True},
        mask_neighbours=False,
        encoder_rotary=False,
        cross_attention_rotary=False,
        encoder_residual='normed',
      ),
      1.0,
    ),
  ],
  ids=['rotary', 'grouped_shifted', 'learned_unmasked', 'interleaved_unmasked'],
)  # fmt: skip
def test_equals_the_full_forward(config, gate):
  rows, neighbours, mask = make_rows()
  params = params_of(config)
  check(config, params, rows, neighbours, mask, gate)


def test_closed_gate_needs_no_retrieval_parameters():
  rows, neighbours, mask = make_rows()
  params = without_retrieval(params_of(CONFIG))
  assert 'encoder' not in params and 'cross_attention' not in params['decoder_0']
  check(CONFIG, params, rows, neighbours, mask, 0)


def test_documents_are_kept_apart():
  rows, neighbours, mask = make_rows()
  segments = np.array([[0, 1, 1, 1, 2, 2, 0, 3], [0, 0, 0, 0, 0, 1, 2, 2]])
  check(CONFIG, params_of(CONFIG), rows, neighbours, mask | True, 1.0, segments)


def test_neighbours_are_encoded_once_a_chunk(monkeypatch):
  params, encode, encoded = params_of(CONFIG), Retro.encode_neighbours, []

  def counted(model, *args):
    jax.debug.callback(lambda: encoded.append(1))
    return encode(model, *args)

  monkeypatch.setattr(Retro, 'encode_neighbours', counted)
  rows, neighbours, mask = make_rows()
  cached_logits(CONFIG, params, rows, neighbours, mask, 1.0)
  jax.effects_barrier()
  assert len(encoded) == 1 + NUM_NEW // C  # of the prompt, of each new chunk


def test_mistakes_are_errors_in_words():
  model, prompt, length = Retro(CONFIG), np.zeros((1, 8), np.int32), np.array([8])
  params = params_of(CONFIG)
  start = lambda tokens, **kwargs: model.apply(
    {'params': params}, tokens, length, gate=0, method=prefill, **kwargs
  )
  with pytest.raises(ValueError, match='6 prompt tokens: not whole chunks of 4'):
    start(prompt[:, :6], max_len=16)
  with pytest.raises(ValueError, match='8 prompt tokens.*max_len 7'):
    start(prompt, max_len=7)
  cache, _ = start(prompt, max_len=9)
  with pytest.raises(ValueError, match='open in step if and only if it was in prefill'):
    compile_step(model, is_open=True)(params, cache, np.array([1]))

"""Greedy decoding of a batch in one call, for tests."""

import jax
import numpy as np

from instructretro_jax.inference.decode import DecodingLoop, left_pad
from instructretro_jax.model.retro import is_open


def make_decoder(model, *, prompt_len, num_new, eos_id):
  """A function (params, prompts, neighbours_BKR, mask_BKR, gate=1.0) -> new tokens [B, num_new].

  Greedy decoding to the end in one call. Prompts are token lists of any length up to `prompt_len`;
  a row does not depend on the others. Every chunk reads the neighbours of its request. All tokens
  after the end token are end tokens, and decoding stops when every row has ended.
  """
  C = model.config.chunk_len
  padded_len = -(-prompt_len // C) * C
  decoder = DecodingLoop(model, (eos_id,), tokens_per_call=num_new)

  def decode(params, prompts, neighbours_BKR=None, mask_BKR=None, gate=1.0):
    tokens_BP, lengths_B = left_pad(prompts, padded_len)
    given = ()
    if is_open(gate):
      shape = (len(prompts), padded_len // C)
      spread = lambda x: np.broadcast_to(x[:, None], (*shape, *x.shape[1:]))
      given = jax.tree.map(spread, (neighbours_BKR, mask_BKR))
    rows = decoder.begin(params, tokens_BP, lengths_B, *given, gate=gate, max_new=num_new)
    first_B1 = np.asarray(rows.token_B)[:, None]
    if num_new == 1:
      return first_B1
    _, tokens_BT = decoder.advance(params, rows, gate=gate, count=num_new - 1)
    return np.concatenate([first_B1, tokens_BT], axis=1)[:, :num_new]

  return decode

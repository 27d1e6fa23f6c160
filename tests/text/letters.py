"""A vocabulary whose tokens are characters, by their code."""

import numpy as np

from instructretro_jax.text.tokens import Vocabulary


class Letters(Vocabulary):
  """A token a character; 1 ends a text, control tokens are from 200,000 on."""

  eos_id, unk_id, vocab_size = 1, None, 300_000
  controls: tuple[str, ...] = ()

  def spelling(self, token):
    return '</s>' if token == self.eos_id else chr(token)

  def control_id(self, name):
    return 200_000 + self.controls.index(name) if name in self.controls else None

  def token_bytes(self):
    return np.ones(self.vocab_size, np.int32)

  def _encode(self, text, continues):
    return [ord(c) for c in text]

  def _decode(self, ids, continues):
    return ''.join(map(chr, ids))

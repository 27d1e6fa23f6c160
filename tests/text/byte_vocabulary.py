"""A vocabulary of bytes: three control tokens, then one token a byte."""

import numpy as np

from instructretro_jax.text.tokens import Vocabulary

FIRST = 3  # 0 pads, 1 ends a document, 2 is unknown


class ByteVocabulary(Vocabulary):
  vocab_size = FIRST + 256
  eos_id = 1
  unk_id = 2

  def spelling(self, token):
    return f'<{token}>'

  def _encode(self, text, continues):
    return [byte + FIRST for byte in text.encode()]

  def _decode(self, ids, continues):
    return bytes(i - FIRST for i in ids if i >= FIRST).decode(errors='ignore')

  def token_bytes(self):
    return (np.arange(self.vocab_size) >= FIRST).astype(np.int32)

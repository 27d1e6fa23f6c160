"""What a vocabulary is: text to tokens and back, with control tokens apart from text."""

from __future__ import annotations

import abc
from collections.abc import Sequence
import functools

import numpy as np

from instructretro_jax.text import cuts

_MOST_WAITING = 8  # tokens until broken bytes are taken for what they are


class Vocabulary(abc.ABC):
  """Tokens of a language by number. Id 0 pads, and what a model writes ends with an end token.

  Text is text, whatever it spells: control tokens are named (`control_id`), never encoded.

  Attributes:
    start_ids: what every text begins with, if anything.
    chat_template: how the model is asked, in the language of jinja2; None if nobody said.
    bos_token: what stands for the start of a text in that template.
    source: where it was read, for errors.
    piece_chars: longer texts are encoded in pieces of about so many characters.
  """

  pad_id = 0
  start_ids: tuple[int, ...] = ()
  chat_template: str | None = None
  bos_token: str = ''
  source: str = 'the vocabulary'
  piece_chars = 1 << 18

  @property
  @abc.abstractmethod
  def vocab_size(self) -> int:
    """V: ids are below it."""

  @property
  @abc.abstractmethod
  def eos_id(self) -> int:
    """The token that ends a document."""

  @property
  def end_ids(self) -> tuple[int, ...]:
    """The tokens that end an answer, that of documents first."""
    return (self.eos_id,)

  @property
  @abc.abstractmethod
  def unk_id(self) -> int | None:
    """What stands for an id beyond the vocabulary, if there is such a token."""

  @abc.abstractmethod
  def spelling(self, token: int) -> str:
    """A token as the vocabulary spells it."""

  def control_names(self) -> tuple[str, ...]:
    """How the control tokens are spelt."""
    return ()

  def control_id(self, name: str) -> int | None:
    """The control token of a name; None if there is none."""
    return None

  def encode(self, text: str, continues: bool = False) -> list[int]:
    """The tokens of a text, without start and end tokens.

    Args:
      continues: other text stands before it. For encode(a) + encode(b, continues=True) to be
        encode(a + b), a space between two words goes to the second.
    """
    parts = enumerate(cuts.pieces(text, self.piece_chars, self._is_seam))
    return [token for n, part in parts for token in self._encode(part, continues or n > 0)]

  def document(self, text: str) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a whole document with start and end, and the bytes of text of each, [T] int32.

    The bytes add up to those of the text, also where the vocabulary changes a text before it cuts
    it: what it changed is attributed to the tokens of the words around.
    """
    ids, sizes = [self.start_ids], [np.zeros(len(self.start_ids), np.int32)]
    for n, piece in enumerate(cuts.pieces(text, self.piece_chars, self._is_seam)):
      tokens, bytes_of = self._measured(piece, self._encode(piece, n > 0), n > 0)
      ids.append(np.array(tokens, np.int32))
      sizes.append(bytes_of.astype(np.int32))
    ids.append((self.eos_id,))
    sizes.append(np.zeros(1, np.int32))
    return np.concatenate([np.array(part, np.int32) for part in ids]), np.concatenate(sizes)

  def decode(self, ids: Sequence[int], continues: bool = False) -> str:
    """The text of tokens; control tokens have none.

    Args:
      continues: other text stands before it.
    """
    kept = [int(i) for i in ids]
    if self.unk_id is not None:
      kept = [i if i < self.vocab_size else self.unk_id for i in kept]
    return self._decode(kept, continues)

  @abc.abstractmethod
  def token_bytes(self) -> np.ndarray:
    """UTF-8 bytes that each token stands for inside of a text, [V] int32; 0 for control tokens."""

  def lead_bytes(self) -> int:
    """Bytes of the first token of a text that are none of the text: a space put before it."""
    return 0

  @abc.abstractmethod
  def _encode(self, text: str, continues: bool) -> list[int]:
    """The tokens of a piece of text."""

  @abc.abstractmethod
  def _decode(self, ids: list[int], continues: bool) -> str:
    """The text of tokens that the vocabulary has."""

  @functools.cached_property
  def _token_bytes(self) -> np.ndarray:
    return self.token_bytes().astype(np.int64)

  def _is_seam(self, before: str, after: str) -> bool:
    """Whether two texts side by side have the tokens that they have apart."""
    joined = self._encode(before + after, True)
    return joined == self._encode(before, True) + self._encode(after, True)

  def _measured(self, text: str, ids: list[int], continues: bool) -> tuple[list[int], np.ndarray]:
    """The tokens of a piece of text, and the bytes of each, which add up to its own."""
    sizes = self._token_bytes[ids]
    if len(ids) and not continues:
      sizes[0] -= min(sizes[0], self.lead_bytes())
    total = len(text.encode())
    if sizes.sum() == total or not ids:
      return ids, sizes
    place = cuts.near(text, len(text) // 2, self._is_seam)
    if place is not None:
      parts = [(text[:place], continues), (text[place:], True)]
      measured = [self._measured(part, self._encode(part, after), after) for part, after in parts]
      if [token for tokens, _ in measured for token in tokens] == ids:
        sizes = np.concatenate([sizes for _, sizes in measured])
        if sizes.sum() == total:
          return ids, sizes
    # no smaller part is known that differs: in proportion
    weights = np.maximum(sizes, 0) if sizes.any() else np.ones(len(ids), np.int64)
    ends = np.cumsum(weights) * total // weights.sum()
    return ids, np.diff(ends, prepend=0)


def pieces(vocab: Vocabulary, ids: Sequence[int]) -> list[str]:
  """The text of each token after those before it; a broken character stands with its last one."""
  found, waiting, is_first = [], [], True
  for n, token in enumerate(ids):
    waiting.append(int(token))
    text = vocab.decode(waiting, continues=not is_first)
    if text.endswith('\ufffd') and n + 1 < len(ids) and len(waiting) < _MOST_WAITING:
      found.append('')
      continue
    found.append(text)
    if text:
      waiting, is_first = [], False
  return found

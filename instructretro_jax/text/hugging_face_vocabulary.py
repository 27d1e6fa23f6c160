"""The `tokenizer.json` of Hugging Face's tokenizers library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import copy
import functools
import json
from pathlib import Path
import re
from typing import Any

import numpy as np
import tokenizers

from instructretro_jax.pipeline import foreign
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.pipeline.paths import to_path
from instructretro_jax.text.sentencepiece_vocabulary import META_SYMBOL
from instructretro_jax.text.tokens import Vocabulary

_EOS_TOKENS = ('<|endoftext|>', '</s>', '<|end_of_text|>', '<eos>', '[SEP]')
_BYTE = re.compile(r'<0x([0-9A-Fa-f]{2})>')


class HuggingFaceVocabulary(Vocabulary):
  """A `tokenizer.json`: its ids for a text, which is never read as control tokens.

  A space that it puts before a text stands before the first word of a text alone.

  Args:
    path: the file.
    eos_token: the token that ends a document; by default the first known one that the file has.
    end_tokens: more tokens that end an answer.
    start_token: what a text begins with, '' for nothing; by default what the file puts there.

  Raises StageError if the file is no tokenizer, or has no token to end a document with.
  """

  unk_id = None

  def __init__(
    self,
    path: str,
    eos_token: str | None = None,
    end_tokens: Sequence[str] = (),
    start_token: str | None = None,
  ):
    self.source = path
    content = foreign.read_json(to_path(path))
    whole = _opened(content, path)
    self._vocab: dict[str, int] = whole.get_vocab()
    known = [eos_token] if eos_token else [t for t in _EOS_TOKENS if t in self._vocab]
    if not known or known[0] not in self._vocab:
      raise StageError(
        f'{path} has none of the tokens {known or list(_EOS_TOKENS)} to end a document with: give '
        'one that it has as eos_token (--eos_token)'
      )
    ends = dict.fromkeys([known[0], *(t for t in end_tokens if t in self._vocab)])
    self._end_ids = tuple(self._vocab[token] for token in ends)
    if start_token is None:
      self.start_ids = _start_ids(whole)
    else:
      self.start_ids = (self._vocab[start_token],) if start_token in self._vocab else ()
    names = {self.spelling(i) for i in (*self._end_ids, *self.start_ids)}
    self._lead, content = _bare(content, whole, names)
    self._tokenizer = _opened(content, path)
    self._tokenizer.encode_special_tokens = True  # as ordinary text, that is
    self._added = {token['id']: token for token in content.get('added_tokens') or ()}
    self._control = {t['content']: i for i, t in self._added.items() if t['special']}
    self._family = _family(content)
    model = content['model']
    self._unk = self._vocab.get(model.get('unk_token'), None)
    self._spelled = frozenset(self._control.values()) - {self._unk}
    spelled = [self._vocab.get(f'<0x{byte:02X}>') for byte in META_SYMBOL.encode()]
    self._bytes_of_meta = spelled if self._family == 'metaspace' and None not in spelled else None

  @functools.cached_property
  def _tokens(self) -> dict[int, str]:
    return {number: token for token, number in self._vocab.items()}

  @property
  def vocab_size(self) -> int:
    return 1 + max(self._vocab.values())  # ids may have gaps

  @property
  def eos_id(self) -> int:
    return self._end_ids[0]

  @property
  def end_ids(self) -> tuple[int, ...]:
    return self._end_ids

  def spelling(self, token: int) -> str:
    """A token as the file spells it."""
    return self._tokens.get(token, '')

  def control_names(self) -> tuple[str, ...]:
    """Those that the file marks as special."""
    return tuple(self._control)

  def control_id(self, name: str) -> int | None:
    """The special token of a name."""
    return self._control.get(name)

  def lead_bytes(self) -> int:
    """1 if the tokenizer puts a space before a text."""
    return len(self._lead)

  def _encode(self, text: str, continues: bool) -> list[int]:
    if not continues and text:
      text = self._lead + text
    if self._bytes_of_meta is None or META_SYMBOL not in text:
      return self._plain(text)
    first, *parts = text.split(META_SYMBOL)
    ids = self._plain(first)
    for part in parts:
      ids = [*ids, *self._bytes_of_meta, *self._plain(part)]
    return ids

  def _plain(self, text: str) -> list[int]:
    ids = self._tokenizer.encode(text, add_special_tokens=False).ids
    if self._spelled.isdisjoint(ids):
      return ids
    # the model itself knows the spelling of a control token (Unigram does): cut it in two
    name = max((name for name in self._control if name in text), key=len, default='')
    if len(name) < 2:
      return ids
    place = text.index(name) + len(name) // 2
    return [*self._plain(text[:place]), *self._plain(text[place:])]

  def _decode(self, ids: list[int], continues: bool) -> str:
    if self._family is None:
      return self._tokenizer.decode(ids, skip_special_tokens=True)
    text = b''.join(map(self._bytes, ids)).decode(errors='replace')
    return text if continues else text.removeprefix(self._lead)

  def _bytes(self, number: int) -> bytes:
    """What a token stands for inside of a text."""
    token = self._tokens.get(number, '')
    added = self._added.get(number)
    if number == self._unk or (added is not None and added['special']):
      return b''
    if self._family == 'byte_level':
      if added is not None:
        return token.encode()
      table = _byte_level_alphabet()
      return b''.join(bytes([table[c]]) if c in table else c.encode() for c in token)
    if match := _BYTE.fullmatch(token):
      return bytes([int(match[1], 16)])
    # added or not: Gemma's runs of spaces are added tokens too
    return token.replace(META_SYMBOL, ' ').encode()

  def token_bytes(self) -> np.ndarray:
    """Exact by pieces for byte-level and Metaspace tokenizers; of others each token alone."""
    ids = range(self.vocab_size)
    if self._family is not None:
      return np.array([len(self._bytes(i)) for i in ids], np.int32)
    return np.array(
      [len(text.encode()) for text in self._tokenizer.decode_batch([[i] for i in ids])]
    )


def spellings(path: Path) -> dict[int, str]:
  """The tokens of a file by id. Raises StageError if it is no tokenizer."""
  opened = _opened(foreign.read_json(path), str(path))
  return {number: token for token, number in opened.get_vocab().items()}


def _opened(content: Mapping[str, Any], path: str) -> tokenizers.Tokenizer:
  try:
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
  except Exception as error:  # of the library, which has no class for it
    raise StageError(f'{path} is no tokenizer of the tokenizers library: {error}') from error
  tokenizer.no_truncation()  # the file may ask for both
  tokenizer.no_padding()
  return tokenizer


def _start_ids(tokenizer: tokenizers.Tokenizer) -> tuple[int, ...]:
  """What the tokenizer puts before the tokens of a text."""
  bare = tokenizer.encode('a', add_special_tokens=False).ids
  whole = tokenizer.encode('a', add_special_tokens=True).ids
  for start in range(len(whole) - len(bare) + 1):
    if whole[start : start + len(bare)] == bare:
      return tuple(whole[:start])
  return ()


def _bare(
  content: Mapping[str, Any], whole: tokenizers.Tokenizer, names: set[str]
) -> tuple[str, dict[str, Any]]:
  """The space that a tokenizer puts before every text, if it does, and the file without that.

  Args:
    names: of tokens that are control tokens, whatever the file says.
  """
  content = copy.deepcopy(dict(content))
  content |= {'truncation': None, 'padding': None, 'post_processor': None}
  for token in content.get('added_tokens') or ():
    token['special'] = bool(token.get('special')) or token['content'] in names
  added = {token['content'] for token in content.get('added_tokens') or ()}
  for name in sorted(names - added):  # in the model alone
    content.setdefault('added_tokens', [])
    content['added_tokens'] = [*(content['added_tokens'] or ()), _special(name, whole)]
  without = copy.deepcopy(content)
  for part in _parts(without.get('normalizer')):
    if part['type'] == 'Sequence':
      part['normalizers'] = [p for p in part['normalizers'] if p['type'] != 'Prepend']
  if (without.get('normalizer') or {}).get('type') == 'Prepend':
    without['normalizer'] = None
  for part in _parts(without.get('pre_tokenizer')):
    if part['type'] == 'Metaspace':
      part |= {'prepend_scheme': 'never', 'add_prefix_space': False}
    if part['type'] == 'ByteLevel':
      part['add_prefix_space'] = False
  if without == content:
    return '', content
  bare = _opened(without, 'the tokenizer')
  ids = lambda tokenizer, text: tokenizer.encode(text, add_special_tokens=False).ids
  if ids(bare, 'a') == ids(whole, 'a'):  # it never put one
    return '', without
  return (' ', without) if ids(bare, ' a') == ids(whole, 'a') else ('', content)


def _special(name: str, tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
  flags = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
  return {'id': tokenizer.token_to_id(name), 'content': name, **flags, 'special': True}


def _parts(component: Any) -> Iterator[dict[str, Any]]:
  """A component of a tokenizer and all inside of it."""
  if isinstance(component, Mapping) and 'type' in component:
    yield component
    for name in ('normalizers', 'pretokenizers', 'decoders'):
      for inner in component.get(name) or ():
        yield from _parts(inner)


def _family(content: Mapping[str, Any]) -> str | None:
  """How pieces spell bytes: 'byte_level', 'metaspace', or None if that is not known."""
  decoders = list(_parts(content.get('decoder')))
  types = {part['type'] for part in decoders}
  if 'ByteLevel' in types:
    return 'byte_level'
  turned = {'type': 'Replace', 'pattern': {'String': META_SYMBOL}, 'content': ' '}
  return 'metaspace' if 'Metaspace' in types or turned in decoders else None


@functools.cache
def _byte_level_alphabet() -> dict[str, int]:
  """The character that byte-level vocabularies write for each byte, turned round.

  Printable bytes of Latin-1 stand for themselves, the others for the characters from 256 on.
  """
  printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [byte for byte in range(256) if byte not in printable]
  return {**{chr(b): b for b in printable}, **{chr(256 + n): b for n, b in enumerate(others)}}

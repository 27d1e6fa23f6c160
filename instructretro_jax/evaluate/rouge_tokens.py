"""Words that ROUGE counts, in any script."""

from __future__ import annotations

from collections.abc import Iterator
import re
import unicodedata

from rouge_score import tokenizers

# scripts written without spaces: Thai, Lao, Myanmar, Khmer, kana, and Chinese characters
_UNSPACED = (
  '\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff'
  '\U00020000-\U0003ffff'
)
_PIECES = re.compile(f'[{_UNSPACED}]|[^{_UNSPACED}]+')


class RougeTokenizer(tokenizers.Tokenizer):
  """Tokens of the rouge_score library, stemmed, and those words that it would drop.

  The library takes a-z and 0-9 alone, so a Russian or Chinese text has no token there. A word of
  another script than Latin is a token here, or several, a character each, where its script has no
  spaces. Every other word gives the tokens of the library, so that scores of English are its own.
  """

  def __init__(self):
    self._of_library = tokenizers.DefaultTokenizer(use_stemmer=True)

  def tokenize(self, text: str) -> list[str]:
    """The tokens of a text, in order."""
    lower = text.lower()
    if lower.isascii():
      return self._of_library.tokenize(lower)
    tokens = []
    for word, is_latin in _words(lower):
      if is_latin:
        tokens += self._of_library.tokenize(word)
      else:
        tokens += _PIECES.findall(unicodedata.normalize('NFC', word))
    return tokens


def _words(text: str) -> Iterator[tuple[str, bool]]:
  """Runs of letters and digits that are Latin, or are not, with the marks upon them."""
  word, was_latin = '', False
  for character in text:
    kind = unicodedata.category(character)[0]
    is_latin = was_latin if kind == 'M' else _is_latin(character)
    if word and (kind not in 'LNM' or is_latin != was_latin):
      yield word, was_latin
      word = ''
    if kind in 'LNM':
      word, was_latin = word + character, is_latin
  if word:
    yield word, was_latin


def _is_latin(character: str) -> bool:
  return character.isascii() or unicodedata.name(character, '').startswith('LATIN')

"""Text while it grows: whole characters, stop texts, repetition."""

import dataclasses

import numpy as np
import pytest

from instructretro_jax.inference.answer import PartialAnswer, Request, repeats_at_end
from instructretro_jax.text.hugging_face_vocabulary import HuggingFaceVocabulary
from instructretro_jax.text.tokens import Vocabulary

EOS = 256


class Bytes(Vocabulary):
  """A vocabulary of bytes: token 256 ends a text."""

  eos_id, vocab_size, unk_id = EOS, 257, None

  def spelling(self, token):
    return f'<{token}>'

  def token_bytes(self):
    return (np.arange(self.vocab_size) < EOS).astype(np.int32)

  def _encode(self, text, continues):
    return list(text.encode())

  def _decode(self, ids, continues):
    return bytes(i for i in ids if i < EOS).decode(errors='replace')


def answer_of(text, piecewise=True, prompt='p', **fields):
  """Pieces and result of an answer whose tokens are the bytes of a text."""
  vocab = Bytes()
  answer = PartialAnswer(Request(prompt=prompt, **fields), vocab.encode(prompt), vocab)
  tokens, pieces = text if isinstance(text, list) else vocab.encode(text), []
  for token in tokens:
    answer.add(token)
    if piecewise:
      pieces.append(answer.take())
  return [piece for piece in pieces if piece], answer.result()


def test_pieces_are_whole_characters():
  text = 'né 日本 🙂.'
  pieces, result = answer_of([*text.encode(), EOS])
  assert pieces == list(text) and result.text == text and result.finish == 'end'
  assert result.tokens == tuple(text.encode())
  broken = [*'a日'.encode()[:-1], EOS]  # a character whose last byte never comes
  pieces, result = answer_of(broken)
  assert pieces[0] == 'a' and set(pieces[1]) == {'\ufffd'} and result.text == ''.join(pieces)
  assert answer_of([0xFF, *b'ok', EOS])[1].text == '\ufffdok'


def test_a_control_token_ends_an_answer_though_it_has_no_text():
  class Chat(Bytes):
    vocab_size, end = 258, 257

    def control_id(self, name):
      return self.end if name == '<|im_end|>' else None

  answer = PartialAnswer(Request(prompt='p', stop=('<|im_end|>', 'e')), [112], Chat())
  for token in [*b'Yo', Chat.end, *b'user']:
    answer.add(token)
  result = answer.result()
  assert (result.text, result.finish, result.tokens) == ('Yo', 'stop', tuple(b'Yo'))


def test_each_end_token_ends_an_answer():
  class TwoEnds(Bytes):
    vocab_size, end_ids = 258, (EOS, 257)

  for end in TwoEnds.end_ids:
    answer = PartialAnswer(Request(prompt='p'), [112], TwoEnds())
    for token in [*b'Yo', end, *b'user']:
      answer.add(token)
    assert (answer.result().text, answer.result().finish) == ('Yo', 'end')


def test_an_answer_ends_at_its_length_and_takes_no_more():
  pieces, result = answer_of('abcdef', max_new=3)
  assert (result.text, result.finish, len(result.tokens)) == ('abc', 'length', 3)
  assert ''.join(pieces) == 'abc'


@pytest.mark.parametrize('piecewise', [True, False])
def test_stop_texts_end_an_answer_and_are_never_given(piecewise):
  stop = ('\nUser:', '###')
  pieces, result = answer_of('Yes.\nUse it\nUser: no', piecewise, stop=stop)
  assert (result.text, result.finish) == ('Yes.\nUse it', 'stop')
  if piecewise:
    assert ''.join(pieces) == result.text
    assert '\nUse ' in pieces  # held while it could still have become '\nUser:'
  held = answer_of([*b'so\nUser', EOS], piecewise, stop=stop)
  assert held[1].text == 'so\nUser' and (not piecewise or ''.join(held[0]) == 'so\nUser')
  # the first of two, and one that is longer than all that was there before
  assert answer_of('a###\nUser:', piecewise, stop=stop)[1].text == 'a'


def test_repetition_is_three_times_a_phrase_of_two_tokens():
  assert repeats_at_end([9, 1, 2, 1, 2, 1, 2]) and repeats_at_end([5] * 6)
  for tokens in ([], [1, 2] * 2, [5] * 5, [1, 2, 1, 2, 1, 2, 3], [1, 2, 3, 4, 1, 2, 3, 1, 2, 3]):
    assert not repeats_at_end(tokens)
  result = answer_of('well, ha ha ha ha ha ', stop_at_repetition=True)[1]
  assert (result.text, result.finish) == ('well, ha ha ha', 'repetition')
  assert answer_of([*b'ha ha ha ha ', EOS])[1].finish == 'end'


def test_a_word_is_spelt_as_after_the_prompt(tmp_path):
  """Tokenizers of words drop the space before the first word of what they decode."""
  import tokenizers

  words = {'<eos>': 0, '▁one': 1, '▁two': 2, '▁': 3}
  made = tokenizers.Tokenizer(tokenizers.models.BPE(words, [], unk_token='<eos>'))
  made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  made.decoder = tokenizers.decoders.Metaspace()
  made.save(str(tmp_path / 'tokenizer.json'))
  vocab = HuggingFaceVocabulary(str(tmp_path / 'tokenizer.json'), '<eos>')
  for prompt, expected in (((1,), ' two one'), ((1, 0), 'two one')):
    answer = PartialAnswer(Request(prompt=prompt), prompt, vocab)
    for token in (2, 1, 0):
      answer.add(token)
    assert answer.result().text == expected


@pytest.mark.parametrize(
  'wrong, message',
  [
    ({'prompt': ''}, 'prompt is empty'),
    ({'max_new': 0}, 'max_new=0'),
    ({'temperature': -1.0}, 'temperature=-1.0'),
    ({'top_p': 0.0}, 'top_p=0.0'),
    ({'stop': ('',)}, 'stop text is empty'),
  ],
)
def test_impossible_requests_are_errors_in_words(wrong, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(Request(prompt='x'), **wrong)

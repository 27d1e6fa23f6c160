"""Prompts: their form, and what is cut to fit."""

import dataclasses

import pytest

from instructretro_jax.questions.passage import untitled
from instructretro_jax.questions.prompts import CHATML, PLAIN, Prompter
from instructretro_jax.questions.questions import Question


class Letters:
  pad_id, eos_id = 0, 1

  def encode(self, text):
    return [ord(c) for c in text]


def text_of(tokens):
  return ''.join(map(chr, tokens))


def test_passages_are_cut_and_questions_never():
  question = Question('q', 'Why?', untitled('P' * 500), ('so',), 'own', 'given')
  tokens, cut, turns_cut = Prompter(Letters()).prompt(question, 200)
  text = text_of(tokens)
  assert len(tokens) == 200 and text.endswith('User: Why?\n\nAssistant:') and turns_cut == 0
  assert text.count('P') + cut == 502  # the two line ends behind the passage are cut with it
  with pytest.raises(ValueError, match='question q needs'):
    Prompter(Letters()).prompt(question, 20)


def test_the_oldest_turns_are_left_out_once_no_passage_is_left():
  history = ('first?', 'one.', 'second?', 'two.')
  question = Question(
    'q', 'Why?', untitled('P' * 50), ('so',), 'own', 'given', history, system='S.'
  )
  prompter = Prompter(Letters())
  whole = text_of(prompter.prompt(question, 999).tokens)
  assert whole == 'System: S.\n\n' + 'P' * 50 + (
    '\n\nUser: first?\n\nAssistant: one.\n\nUser: second?\n\nAssistant: two.\n\n'
    'User: Why?\n\nAssistant:'
  )
  without_passage = len(whole) - 52
  assert prompter.prompt(question, without_passage)[1:] == (52, 0)
  tokens, cut, turns_cut = prompter.prompt(question, without_passage - 1)
  assert 'first' not in text_of(tokens) and 'second' in text_of(tokens) and turns_cut == 2
  assert len(tokens) == without_passage - 1 and cut == 52 - text_of(tokens).count('P')


def test_styles_ask_and_begin_the_answer():
  question = Question('q', 'Which?', (), ('B',), 'own', 'option', options=('red', 'blue'))
  prompter = Prompter(Letters())
  text = text_of(prompter.prompt(question, 999).tokens)
  asked = 'User: Answer the question with the letter of one option. Which?\n(A) red\n(B) blue'
  assert text.endswith(f'{asked}\n\nAssistant: The answer is')
  assert prompter.answer(question, 'B ') == [ord(' '), ord('B'), 1]
  assert prompter.answer(question, 'B', with_end=False) == [ord(' '), ord('B')]


def test_a_format_may_put_short_answers_in_quotation_marks():
  class Chat(Letters):
    """`Letters` with the token that ChatML is known by."""

    def encode(self, text):
      return [1000] if text == '<|im_start|>' else super().encode(text)

  prompter = Prompter(Chat())
  question = Question('q', 'Who?', (), ('Ann',), 'own')
  assert text_of(prompter.prompt(question, 999).tokens).endswith('assistant\nThe answer is "')
  assert text_of(prompter.answer(question, ' Ann ')) == 'Ann"<|im_end|>'
  assert text_of(prompter.answer(question, 'Ann', with_end=False)) == 'Ann'
  assert prompter.stops(question) == (*CHATML.stop, '"')
  free = dataclasses.replace(question, style='full')
  assert text_of(prompter.prompt(free, 999).tokens).endswith('assistant\n')
  assert text_of(prompter.answer(free, 'Ann')) == 'Ann<|im_end|>'
  assert prompter.stops(free) == CHATML.stop
  assert Prompter(Letters()).stops(question) == PLAIN.stop


def test_formats():
  prompt = ''.join(CHATML.parts(['A?', ' B.', 'Who? '], ['One.', 'Two.']))
  assert prompt == (
    '<|im_start|>user\nOne.\n\nTwo.\n\nA?<|im_end|>\n<|im_start|>assistant\nB.<|im_end|>\n'
    '<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n'
  )
  prompt = ''.join(CHATML.parts(['A?'], (), 'Be brief.'))
  assert prompt.startswith('<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nA?<')
  head, passages, tail = PLAIN.parts(['A?'], ['One.'])
  assert head == f'System: {PLAIN.default_system}\n\n'
  assert (passages, tail) == ('One.\n\n', 'User: A?\n\nAssistant:')

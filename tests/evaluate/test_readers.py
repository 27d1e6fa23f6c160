"""Readers: a checkpoint of ours, and models of transformers where it is installed."""

import importlib.util

import numpy as np
import pytest

from instructretro_jax.evaluate.readers import (
  CheckpointReader,
  HuggingFaceReader,
  Limits,
  Query,
  answer_of,
  options_of,
)
from instructretro_jax.questions.passage import untitled
from instructretro_jax.questions.questions import Question

LIMITS = Limits(prompt_len=150, num_new=6, batch_size=4)


def query(n, encoder_on=False, **fields):
  fields = {'style': 'given', 'system': ''} | fields
  passages = ('dog eel fox gnu hen', 'ibis jay') if encoder_on else ('ape ' * n,) * (n > 0)
  question = Question(f'q{n}', f'bee {n}?', untitled(*passages), ('yes',), 'own', **fields)
  return Query(question=question, passages=passages, encoder_on=encoder_on)


def test_every_question_gets_its_own_answer_whatever_stands_beside_it(run_with_arm):
  reader = CheckpointReader(run_with_arm / 'retro_fit', LIMITS, with_encoder=True)
  queries = [query(n) for n in range(6)] + [query(n, encoder_on=True) for n in range(2)]
  together = reader.answers(queries)
  alone = [reader.answers([one])[0] for one in queries]
  assert together == alone and len(set(together)) > 1
  off = [Query(question=one.question, passages=one.passages) for one in queries[6:]]
  assert reader.answers(off) != together[6:]


def test_choices_follow_the_encoder_and_do_not_need_it(run_with_arm):
  boolean = {'style': 'boolean'}
  queries = [query(n, **boolean) for n in range(5)]
  loads = (True, False)
  with_encoder, without = (
    CheckpointReader(run_with_arm / 'retro_fit', LIMITS, with_encoder=w) for w in loads
  )
  found = with_encoder.choices(queries)
  assert np.shape(found) == (5, 2) and np.all(np.array(found) < 0)
  np.testing.assert_allclose(found, without.choices(queries), rtol=1e-5)
  alone = [with_encoder.choices([one])[0] for one in queries]
  np.testing.assert_allclose(found, alone, rtol=1e-4)
  opened = [query(n, encoder_on=True, **boolean) for n in range(2)]
  off = [Query(question=one.question, passages=one.passages) for one in opened]
  assert not np.allclose(with_encoder.choices(opened), with_encoder.choices(off), rtol=1e-3)
  with pytest.raises(ValueError, match='there is no encoder here'):
    without.answers(opened)


def test_lettered_options_are_compared_by_their_letter(run_with_arm):
  reader = CheckpointReader(run_with_arm / 'imported', LIMITS, with_encoder=False)
  asked = [query(0, style='option', options=('ape', 'bee', 'cat')), query(1, style='boolean')]
  assert [len(row) for row in reader.choices(asked)] == [3, 2]
  assert [options_of(one.question) for one in asked] == [('A', 'B', 'C'), ('yes', 'no')]
  assert options_of(query(0).question) == ()


def test_a_question_without_room_is_refused(run_with_arm):
  reader = CheckpointReader(run_with_arm / 'imported', Limits(prompt_len=8, num_new=2), False)
  with pytest.raises(ValueError, match='question q0 needs'):
    reader.answers([query(0)])


def test_short_answers_are_the_first_line_with_a_word():
  short = query(0, style='span').question
  assert answer_of(' \nape\nbee', short) == 'ape'
  assert answer_of(':\n\n- "ape".\nbee', short) == 'ape".'
  assert answer_of(': \n...', short) == ''
  assert answer_of(' ape\nbee ', query(0, style='summary').question) == 'ape\nbee'


@pytest.mark.skipif(importlib.util.find_spec('torch') is None, reason='needs torch')
@pytest.mark.parametrize('kind', ['causal', 'seq2seq'])
def test_models_of_transformers_answer_in_the_same_form(kind, tmp_path):
  import torch
  import transformers

  torch.manual_seed(0)
  tokenizer = transformers.AutoTokenizer.from_pretrained('tests/golden/hf/llama')
  if kind == 'causal':
    model = transformers.AutoModelForCausalLM.from_pretrained('tests/golden/hf/llama')
  else:
    config = transformers.T5Config(
      vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
      decoder_start_token_id=0, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
  model.save_pretrained(tmp_path)
  tokenizer.save_pretrained(tmp_path)
  reader = HuggingFaceReader(str(tmp_path), LIMITS)
  queries = [query(n, style='boolean') for n in range(2)]
  answers = reader.answers(queries)
  assert answers == reader.answers(queries) and len(answers) == 2
  choices = np.array(reader.choices(queries))
  assert choices.shape == (2, 2) and (choices < 0).all()

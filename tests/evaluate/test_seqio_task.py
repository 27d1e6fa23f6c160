"""Question sets as seqio tasks, through seqio's own evaluator."""

import numpy as np
import pytest
import seqio

from instructretro_jax.evaluate import seqio_task
from instructretro_jax.questions.passage import untitled
from instructretro_jax.questions.questions import Question
from instructretro_jax.text import vocabulary

QUESTIONS = [
  Question(f'q{n}', f'ape {n}?', untitled('bee cat'), answers, 'own', system='')
  for n, answers in enumerate([('dog', 'eel'), ('fox gnu',), ('hen',)])
]
WRITTEN = {'q0': ' eel\nfox', 'q1': ' fox', 'q2': ' ibis'}


@pytest.fixture
def task(run_folder, request):
  vocab = vocabulary.load(run_folder / 'vocabulary')
  name = f'questions_{request.node.name}'
  yield seqio_task.register(name, QUESTIONS, vocab, prompt_len=90, num_passages=1)
  seqio.TaskRegistry.remove(name)


def test_examples_are_prompts_and_first_answers(task):
  examples = list(task.get_dataset(None, 'test', shuffle=False).as_numpy_iterator())
  vocab = task.output_features['inputs'].vocabulary
  asked = 'User: Answer the question with a short phrase. ape 1?\n\nAssistant: The answer is'
  assert vocab.decode(examples[1]['inputs'].tolist()) == f'bee cat\n\n{asked}'
  targets = examples[1]['targets'].tolist()
  assert targets[-1] == vocab.eos_id and vocab.decode(targets[:-1]) == ' fox gnu'


def test_the_evaluator_of_seqio_finds_our_metrics(task):
  evaluator = seqio.Evaluator(
    task.name, feature_converter=seqio.EncDecFeatureConverter(pack=False), eval_split='test'
  )

  def predict(dataset):
    """Tokens of what was written, in the order of the questions."""
    vocab = task.output_features['inputs'].vocabulary
    rows = [(n, vocab.encode(WRITTEN[f'q{n}'])) for n, _ in enumerate(dataset)]
    longest = max(len(tokens) for _, tokens in rows)
    return [(n, np.pad(tokens, (0, longest - len(tokens)))) for n, tokens in rows]

  metrics, _ = evaluator.evaluate(compute_metrics=True, predict_fn=lambda dataset: predict(dataset))
  found = metrics.result()[task.name]
  assert found['exact_match'] == pytest.approx(100 / 3)
  assert found['f1'] == pytest.approx(100 * (1 + 2 / 3) / 3)
  assert found['f1_first'] == pytest.approx(100 * (2 / 3) / 3)


def test_one_kind_of_answer_a_task(run_folder):
  vocab = vocabulary.load(run_folder / 'vocabulary')
  mixed = [*QUESTIONS, Question('s', '', untitled('bee'), ('b',), 'own', 'summary')]
  with pytest.raises(ValueError, match='questions of one kind of answer'):
    seqio_task.register('mixed', mixed, vocab, prompt_len=90)

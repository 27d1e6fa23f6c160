"""A question set as a seqio task: prompts as inputs, our metrics, for T5X and seqio's Evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from instructretro_jax.evaluate.answers import METRICS
from instructretro_jax.evaluate.readers import answer_of
from instructretro_jax.examples.seqio_tasks import SeqioVocabulary
from instructretro_jax.questions.prompts import Prompter
from instructretro_jax.questions.questions import Question
from instructretro_jax.text.tokens import Vocabulary


def register(
  name: str,
  questions: Sequence[Question],
  vocab: Vocabulary,
  *,
  prompt_len: int,
  passages: Mapping[str, Sequence[str]] | None = None,
  num_passages: int = 5,
) -> seqio.Task:
  """Registers a task whose split 'test' holds the questions, in order.

  An example has `inputs`, the prompt in at most `prompt_len` tokens, and `targets`, the first
  answer and its end. Targets become lists of references, predictions the answers that are judged;
  the metrics are the means, in percent, of those that `ZeroShot` reports.

  Args:
    passages: of each question by its id; by default its own.

  Raises ValueError if the name is taken, a question does not fit, or their styles are not judged by
  the same metrics.
  """
  metrics = {question.how.metrics for question in questions}
  if len(metrics) != 1:
    raise ValueError(f'{name}: questions of one kind of answer make a task, not {len(metrics)}')
  prompter = Prompter(vocab)
  by_id = {question.id: question for question in questions}
  read = lambda q: (q.shown_passages if passages is None else passages[q.id])[:num_passages]
  prompts = [prompter.prompt(q, prompt_len, read(q)).tokens for q in questions]
  answers = [prompter.answer(q, q.answers[0]) for q in questions]

  def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    del split, shuffle_files, seed  # one split, in order

    def examples():
      for question, prompt, answer in zip(questions, prompts, answers):
        arrays = {'inputs': np.array(prompt, np.int32), 'targets': np.array(answer, np.int32)}
        yield {'id': question.id, **arrays}

    ids = tf.TensorSpec([None], tf.int32)
    signature = {'id': tf.TensorSpec([], tf.string), 'inputs': ids, 'targets': ids}
    return tf.data.Dataset.from_generator(examples, output_signature=signature)

  def postprocess(output: Any, example: Mapping[str, Any], is_target: bool) -> Any:
    identity = example['id']
    question = by_id[identity.decode() if isinstance(identity, bytes) else str(identity)]
    return list(question.answers) if is_target else answer_of(output, question)

  def judge(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    mean = lambda score: 100 * float(np.mean(list(map(score, predictions, targets))))
    return {metric: mean(METRICS[metric]) for metric in questions[0].how.metrics}

  theirs = SeqioVocabulary(vocab)
  feature = lambda: seqio.Feature(theirs, add_eos=False)
  return seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(
      dataset, splits=('test',), num_input_examples={'test': len(questions)}
    ),
    preprocessors=[],
    output_features={'inputs': feature(), 'targets': feature()},
    postprocess_fn=postprocess,
    metric_fns=[judge],
  )

"""Batches of questions through a decoder."""

import numpy as np

from instructretro_jax.evaluate.zero_shot import ZeroShot


def test_every_question_gets_its_own_answer_and_batches_have_one_shape():
  stage = ZeroShot(arms=(), max_questions=5, prompt_len=8, num_new=2, batch_size=2)
  shapes = []

  def decode(params, prompts, neighbours, mask, gate):
    shapes.append((len(prompts), neighbours.shape, mask.shape))
    assert params == 'params' and gate == 1.0
    # the answer tells which prompt met which neighbours
    return np.array([[p[0], n[0, 0]] for p, n in zip(prompts, neighbours)])

  prompts = [[10 + n] * (n + 1) for n in range(5)]
  neighbours = np.arange(5)[:, None, None] + np.zeros((5, 1, 4), int)
  windows = [neighbours, neighbours > 0]
  found = stage._answers(decode, 'params', prompts, windows, gate=1.0)
  assert found == [[10 + n, n] for n in range(5)]
  assert len(shapes) == 3 and len(set(shapes)) == 1

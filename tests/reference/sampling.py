"""Sampling filters, one row at a time, by sorting."""

import numpy as np


def softmax(logits):
  weights = np.exp(logits - logits.max())
  return weights / weights.sum()


def penalize(logits, used, penalty):
  return [
    (x / penalty if x > 0 else x * penalty) if was_used else x for x, was_used in zip(logits, used)
  ]


def keep_top_k(probs, k):
  last = sorted(probs, reverse=True)[min(k, len(probs)) - 1] if k else 0
  return [p if p >= last else 0 for p in probs]


def keep_top_p(probs, p):
  order, kept, mass = sorted(range(len(probs)), key=lambda i: -probs[i]), set(), 0.0
  for i in order:
    if mass >= p * sum(probs):
      break
    kept.add(i)
    mass += probs[i]
  return [x if i in kept else 0 for i, x in enumerate(probs)]

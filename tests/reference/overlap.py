"""Slow and obvious twins of instructretro_jax/retrieval/overlap.py, one pair of texts at a time."""

from __future__ import annotations


def longest_common_run(a, b, mask_a, mask_b):
  """Tries every pair of starts and walks on while the tokens are real and equal."""
  longest = 0
  for i in range(len(a)):
    for j in range(len(b)):
      n = 0
      while i + n < len(a) and j + n < len(b) and mask_a[i + n] and mask_b[j + n]:
        if a[i + n] != b[j + n]:
          break
        n += 1
      longest = max(longest, n)
  return longest


def copyable(tokens, segments, neighbours, masks, chunk_len):
  """One sequence: tokens [L], neighbours [N][K][R]; a list of L booleans."""
  found = [False] * len(tokens)
  for n in range(len(neighbours) - 1):
    for p in range((n + 1) * chunk_len, (n + 2) * chunk_len):
      document = {int(segments[q]) for q in (p, (n + 1) * chunk_len - 1)}
      if len(document) > 1 or 0 in document:
        continue
      for text, mask in zip(neighbours[n], masks[n]):
        for r in range(2, len(text)):
          same = all(text[r - d] == tokens[p - d] for d in range(3))
          if same and all(mask[r - d] for d in range(3)):
            found[p] = True
  return found


def copy_rule(texts, text_masks, sources, source_masks, first):
  """Counts (predicted, spoken, right) over texts [M][T] and sources [M][K][R]."""
  predicted = spoken = right = 0
  for text, text_mask, source, source_mask in zip(texts, text_masks, sources, source_masks):
    for t in range(first, len(text)):
      if not text_mask[t]:
        continue
      predicted += 1
      best_len, said = 1, None
      for neighbour, mask in zip(source, source_mask):
        for r in range(len(neighbour) - 1):
          if not mask[r + 1]:
            continue
          n = 0
          while n <= r and n < t and mask[r - n] and text_mask[t - 1 - n]:
            if neighbour[r - n] != text[t - 1 - n]:
              break
            n += 1
          if n > best_len:
            best_len, said = n, neighbour[r + 1]
      if said is not None:
        spoken += 1
        right += int(said == text[t])
  return predicted, spoken, right

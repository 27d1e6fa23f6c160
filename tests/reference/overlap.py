"""Overlap by plain loops."""


def longest_common_run(a, b):
  best = 0
  for i in range(len(a)):
    for j in range(len(b)):
      n = 0
      while i + n < len(a) and j + n < len(b) and a[i + n] == b[j + n]:
        n += 1
      best = max(best, n)
  return best

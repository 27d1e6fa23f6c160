"""What perplexity is told apart by: the neighbours that are read, and the kind of token."""

from __future__ import annotations

KINDS = {'own': 'own neighbours', 'off': 'retrieval off', 'random': 'random neighbours'}
CATEGORIES = {
  'all': 'all',
  'copyable': 'copyable',
  'other': 'other',
  'first_chunk': 'first chunk',
}
# tokens, from and to, that a chunk shares with the neighbours that serve it
RUN_RANGES = ((0, 3), (4, 7), (8, 15), (16, 31), (32, 64))
RUNS = {f'run_{low}_{high}': f'{low}–{high}' for low, high in RUN_RANGES}

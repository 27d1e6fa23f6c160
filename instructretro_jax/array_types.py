"""Shape legend. Arrays carry their shape as a suffix of these letters, on host and device alike.

B sequences in a batch          D decoder width              M chunks in the database
L tokens per sequence (N * C)   F feed-forward width         Q queries in one search
N chunks per sequence           H heads                      S search-embedding width
C tokens per chunk              G key/value heads            V vocabulary
K neighbours per chunk          A head width
R tokens per neighbour (2 * C)  T, U query and key length of any attention
E neighbour-encoder width
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

Array = jax.Array
Batch = Mapping[str, Any]  # arrays by name, as examples/sequences.py makes them
Params = Mapping[str, Any]  # nested parameters of one model

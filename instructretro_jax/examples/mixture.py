"""A stream drawn from several sets, each with its share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from instructretro_jax.examples.sequences import example_ids


class Mixture:
  """Which example of which set stands at a position of the stream.

  Draw k of a set with the share r, counted from 0, is due at (k + 1/2) / r, and the stream is all
  draws in the order in which they are due. So of any T positions in a row a set gets r * T, give or
  take 1 + r * (number of sets), and nothing has to be remembered to go on from a position. What is
  drawn of a set are its examples in shuffled epochs, whatever the epochs of the others are.

  Args:
    sizes: examples of each set; they are numbered set after set.
    rates: of each set, above 0; they need not add up to 1.
  """

  def __init__(self, sizes: Sequence[int], rates: Sequence[float]):
    if len(sizes) != len(rates) or not all(size > 0 for size in sizes):
      raise ValueError(f'{list(rates)} are no rates of sets of {list(sizes)} examples')
    if not all(rate > 0 for rate in rates):
      raise ValueError(f'rates must be above 0, not {list(rates)}')
    self.shares = np.array(rates, np.float64) / np.sum(rates)
    self._sizes = sizes
    self._firsts = np.cumsum([0, *sizes[:-1]])

  def draws(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The set at each position, and how many draws of it came before."""
    # At a time t the sets have had t draws together, give or take half a draw each; so these are
    # due before the first position, and what is due until `stop` goes beyond the last.
    num_sets = len(self.shares)
    start, stop = positions.min() - num_sets, positions.max() + 1 + num_sets
    firsts = np.maximum(0, np.floor(self.shares * start + 0.5)).astype(np.int64)
    ends = np.ceil(self.shares * stop + 0.5).astype(np.int64)
    sets = np.repeat(np.arange(num_sets), ends - firsts)
    draws = np.concatenate([np.arange(*span) for span in zip(firsts, ends)])
    order = np.argsort((draws + 0.5) / self.shares[sets], kind='stable')
    chosen = order[positions - firsts.sum()]
    return sets[chosen], draws[chosen]

  def ids(self, seed: int, positions: np.ndarray) -> np.ndarray:
    """Example numbers at these positions."""
    sets, draws = self.draws(positions)
    ids = np.empty(len(positions), np.int64)
    for n in np.unique(sets):
      here = sets == n
      drawn = example_ids(seed, self._sizes[n], draws[here], stream=int(n))
      ids[here] = self._firsts[n] + drawn
    return ids

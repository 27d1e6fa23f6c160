"""Random gates: as many open as closed, and the same wherever one begins."""

import numpy as np

from instructretro_jax.train.gates import random_gates, with_random_gates


def test_half_of_the_gates_are_open():
  gates = random_gates(3, np.arange(4000))
  assert gates.dtype == np.float32 and set(gates.tolist()) == {0, 1}
  assert abs(gates.mean() - 0.5) < 4 * 0.5 / 4000**0.5
  # neighbouring places have nothing to do with each other
  assert abs((gates[1:] == gates[:-1]).mean() - 0.5) < 4 * 0.5 / 4000**0.5


def test_gates_are_a_function_of_seed_and_position():
  whole = random_gates(3, np.arange(300))
  np.testing.assert_array_equal(random_gates(3, np.arange(100, 300, 7)), whole[100::7])
  assert (random_gates(4, np.arange(300)) != whole).any()


def test_a_process_has_the_gates_of_its_rows_wherever_it_begins():
  expected = random_gates(3, np.arange(60)).reshape(10, 6)
  for rows in ([0, 1, 2, 3, 4, 5], [4, 5], [0, 3]):
    batches = ({'tokens': np.full((len(rows), 2), n)} for n in range(4, 10))
    given = with_random_gates(batches, seed=3, start=24, batch_size=6, rows=np.array(rows))
    for n, batch in enumerate(given, 4):
      assert (batch['tokens'] == n).all()
      np.testing.assert_array_equal(batch['gate'], expected[n, rows])

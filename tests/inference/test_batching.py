"""Which requests are decoded together."""

from instructretro_jax.inference.batching import batches, bucket


def test_few_shapes_are_compiled():
  sizes = [bucket(n) for n in range(1, 14)]
  assert sizes == [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16]


def test_batches_are_of_one_shape_in_order_and_never_of_what_does_not_fit():
  shapes = ['a', 'b', 'a', 'a', 'b', 'a', 'c']
  found = batches(shapes, lambda places: not {2, 3} <= set(places), 3)
  assert found == [([0, 2], 3), ([1, 4], 2), ([3, 5], 3), ([6], 1)]
  assert batches([], all, 3) == []

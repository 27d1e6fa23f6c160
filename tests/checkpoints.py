"""All of a checkpoint at once."""

from instructretro_jax.train.checkpoint import Checkpoint


def load_params(folder):
  """Configuration, parameters as host arrays with one entry a layer, and the record."""
  checkpoint = Checkpoint(folder)
  return checkpoint.config, checkpoint.read(), checkpoint.record

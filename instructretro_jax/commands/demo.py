"""The command `demo`. What it uses is imported when it runs."""

from __future__ import annotations

from pathlib import Path

import click

from instructretro_jax.commands.generate import TENSOR
from instructretro_jax.commands.paths import EXISTING_FOLDER


@click.command()
@click.option(
  '--checkpoint', required=True, type=EXISTING_FOLDER, help='Folder of an arm, or imported.'
)
@click.option(
  '--index', type=EXISTING_FOLDER, help='Run folder whose index is searched for neighbours.'
)
@click.option('--host', default='127.0.0.1', show_default=True, help='Address to listen at.')
@click.option('--port', default=8000, show_default=True, help='Port to listen at; 0: a free one.')
@TENSOR
def demo(checkpoint: Path, index: Path | None, host: str, port: int, tensor: int) -> None:
  """Serves a page for asking: answers with the gate off and on, and what retrieval gave.

  Only this machine can reach it, unless --host says otherwise. One question is answered at a time.

  \b
  Examples:
  instructretro demo --checkpoint=runs/quickstart/retro_instruct --index=runs/quickstart
  instructretro demo --checkpoint=runs/smollm2_135m --port=8080
  """
  import uvicorn

  from instructretro_jax.pipeline.manifest import StageError
  from instructretro_jax.web import opening, server

  try:
    listener = server.listen(host, port)
  except OSError as error:
    raise StageError(
      f'cannot listen at {host}, port {port} ({error}): give another --port'
    ) from error
  with listener:
    is_loopback = host in server.LOOPBACK
    sampler, about = opening.open_checkpoint(checkpoint, index, tensor)
    app = server.make_app(sampler, about, server.LOOPBACK if is_loopback else ('*',))
    if not is_loopback:
      click.echo('Whoever reaches this machine can ask: there is no password.', err=True)
    name = f'[{host}]' if ':' in host else host
    click.echo(f'http://{name}:{listener.getsockname()[1]} (Ctrl-C ends)')
    config = uvicorn.Config(app, log_level='warning', timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listener])

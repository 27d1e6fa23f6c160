"""A stage that writes a text."""

import dataclasses

from instructretro_jax.pipeline import manifest, stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Write(stage.Stage):
  """Writes its text; counts how often it ran in a log, which no checksum covers."""

  text: str
  after: tuple[str, ...] = ()

  def reads(self):
    return self.after

  def build(self, root, folder):
    manifest.write_text(folder / 'text', self.text)
    log = folder / 'logs' / 'runs'
    runs = log.read_text() if log.exists() else ''
    manifest.write_text(log, runs + 'x')
    return {'length': len(self.text)}

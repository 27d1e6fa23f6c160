"""The page in a real browser: nothing is wider than a phone or a desktop window."""

import html
import json
from pathlib import Path
import re
import shutil
import subprocess

import pytest

from instructretro_jax.pipeline import stage
from tests.report import synthetic

# A headless window cannot be as narrow as a phone, a frame can.
_FRAME = """<!DOCTYPE html><html><body style="margin:0">
<iframe style="border:0;width:{width}px;height:{height}px" srcdoc="{page}"></iframe>
<script>
addEventListener('load', () => {{
  const frame = document.querySelector('iframe'), root = frame.contentDocument.documentElement;
  for (const details of root.querySelectorAll('details')) details.open = true;
  const columns = getComputedStyle(root.querySelector('.chunk')).gridTemplateColumns;
  root.querySelector('.text span[title]').click();
  const seen = {{
    window: frame.contentWindow.innerWidth, page: root.scrollWidth, columns,
    plots: root.querySelectorAll('svg').length,
    readout: root.querySelector('#readout').textContent
  }};
  document.body.dataset.seen = JSON.stringify(seen);
}});
</script></body></html>"""


@pytest.fixture(scope='module')
def page(tmp_path_factory):
  """Text of a report."""
  root = tmp_path_factory.mktemp('run')
  synthetic.write_run(root)
  stage.run(synthetic.REPORT, root)
  return (root / 'report' / 'index.html').read_text()


@pytest.mark.slow
@pytest.mark.parametrize('width, num_columns', [(390, 0), (1280, 2)])
def test_page_fits_the_window(page, tmp_path, width, num_columns):
  frame = tmp_path / 'frame.html'
  frame.write_text(_FRAME.format(width=width, height=2400, page=html.escape(page)))
  dom = _chromium(tmp_path, frame, '--dump-dom')
  seen = json.loads(html.unescape(re.search(r'data-seen="([^"]*)"', dom)[1]))
  assert seen['window'] == width
  assert seen['page'] <= width
  # a phone has no grid: neighbours stand below their chunk
  assert len([x for x in seen['columns'].split() if x.endswith('px')]) == num_columns
  assert seen['plots'] == 3  # by shared run, and two lengths of training
  assert re.fullmatch(r'[+-]\d+\.\d\d nats', seen['readout'])
  picture = tmp_path / f'{width}.png'
  _chromium(tmp_path, frame, f'--screenshot={picture}', f'--window-size={max(500, width)},2400')
  assert picture.read_bytes().startswith(b'\x89PNG')


def _chromium(tmp_path: Path, page: Path, *arguments: str) -> str:
  program = shutil.which('chromium')
  if program is None:
    pytest.fail('Chromium is not installed: apt-get install chromium')
  command = [program, '--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars']
  command += [f'--user-data-dir={tmp_path / "profile"}', '--virtual-time-budget=5000']
  done = subprocess.run(
    [*command, *arguments, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
  )
  return done.stdout

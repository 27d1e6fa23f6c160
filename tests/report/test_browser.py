"""The page in a real browser: nothing is wider than a phone or a desktop window."""

import re

import pytest

from instructretro_jax.pipeline import stage
from tests.report import synthetic
from tests.web.chromium import Page, find_chromium

pytestmark = pytest.mark.slow
_TASKS = (
  *('boolq', 'disflqa', 'narrativeqa', 'natural_questions', 'quac', 'squad_open', 'trivia_qa'),
  *('web_questions', 'short_answers', 'long_answers'),
)


@pytest.fixture(scope='module')
def address(tmp_path_factory):
  """Where a report with many tasks stands."""
  root = tmp_path_factory.mktemp('run')
  synthetic.write_run(root, tasks=_TASKS)
  stage.run(synthetic.REPORT, root)
  return (root / 'report' / 'index.html').as_uri()


@pytest.fixture
def page(tmp_path):
  program = find_chromium()
  if program is None:
    pytest.fail('Chromium is not installed: apt-get install chromium')
  page = Page(program, tmp_path / 'profile')
  yield page
  page.close()


@pytest.mark.parametrize('width, num_columns', [(400, 0), (1280, 2)])
def test_page_fits_the_window(page, address, tmp_path, width, num_columns):
  page.resize(width, 900)
  page.open(address)
  page.run('for (const details of document.querySelectorAll("details")) details.open = true')
  assert page.run('innerWidth') == width
  root = 'document.documentElement'
  assert page.run(f'{root}.scrollWidth <= {root}.clientWidth')
  tables = page.run(
    '[...document.querySelectorAll("table")].map(table => [table.parentNode.className, '
    'table.parentNode.scrollWidth, table.parentNode.clientWidth])'
  )
  assert len(tables) == 13 and all(name.startswith('scroll') for name, _, _ in tables)
  # a wide window shows whole tables; on a phone the wide ones scroll, each in its own box
  num_scrolled = sum(inner > outer for _, inner, outer in tables)
  assert num_scrolled == 0 if width == 1280 else num_scrolled >= 5
  # a phone has no grid: neighbours stand below their chunk
  columns = page.run('getComputedStyle(document.querySelector(".chunk")).gridTemplateColumns')
  assert len([x for x in columns.split() if x.endswith('px')]) == num_columns
  # by shared run, and two lengths of training
  assert page.run('document.querySelectorAll("svg").length') == 3
  page.run('document.querySelector(".text span[title]").click()')
  readout = page.run('document.querySelector("#readout").textContent')
  assert re.fullmatch(r'[+-]\d+\.\d\d nats', readout)
  page.photograph(tmp_path / f'{width}.png')
  assert page.complaints == []

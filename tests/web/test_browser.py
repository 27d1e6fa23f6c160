"""The page in a real browser: someone asks, both answers come, and nothing else happens."""

import json

import pytest

from tests.web.chromium import Page, find_chromium
from tests.web.conftest import HOSTILE, HostileRetriever, serving

pytestmark = pytest.mark.slow
DONE = 'document.getElementById("status").textContent == "Done."'


@pytest.fixture
def page(tmp_path):
  program = find_chromium()
  if program is None:
    pytest.fail('Chromium is not installed: apt-get install chromium')
  page = Page(program, tmp_path / 'profile')
  yield page
  page.close()


def ask(page, text, **fields):
  """Fills in the form as a user does, by id or name of a field, and asks."""
  for name, value in {'text': text, 'max_new': 24, **fields}.items():
    field = f'document.getElementById("form").elements[{json.dumps(name)}]'
    page.run(f'{field}.value = {json.dumps(str(value))}')
  page.run('document.getElementById("ask").click()')


def wait_for_the_end(page, condition='true'):
  """Waits until an answer has ended, and says what is wrong if it cannot."""
  error = 'document.getElementById("error").textContent'
  page.wait_for(f'({DONE} && {condition}) || {error}')
  assert page.run(error) == ''


def text_of(page, selector):
  return page.run(f'document.querySelector({selector!r}).textContent')


def test_a_question_is_answered_with_the_gate_off_and_on(page, open_sampler, tmp_path):
  sampler, about = open_sampler()
  sampler.retriever = HostileRetriever(sampler.retriever)
  with serving(sampler, about) as url:
    page.resize(1280, 900)
    page.open(url)
    ask(page, f'ape bee cat {HOSTILE}', num_found=2, passages='kite lynx\n\njay', temperature=1)
    wait_for_the_end(page)
    off, on = (text_of(page, f'#{gate} .answer') for gate in ('off', 'on'))
    assert off and on and off != on
    for gate in ('off', 'on'):
      assert 'tokens in' in text_of(page, f'#{gate} .facts')
    # two passages of the user, two of the index, neighbours of the prompt and of three chunks
    assert page.run('document.querySelectorAll("#passages_given figure").length') == 4
    assert page.run('document.querySelectorAll("#read details").length') == 3
    assert 'score 0.' in text_of(page, '#read figcaption')
    # what a user, a document and the model wrote stands there as it was written
    for selector in ('#prompt pre', '#passages_given', '#read', '#read figcaption'):
      assert HOSTILE in text_of(page, selector)
    assert page.run('document.title') == 'InstructRetro-JAX: ask a checkpoint'
    assert page.run('document.querySelectorAll("main script, main img").length') == 0
    # gains: every token has one, and the keyboard reaches them
    assert page.run('[...document.querySelectorAll("#on .answer span")].every((x) => x.title)')
    page.run('document.querySelector("#on .answer").focus()')
    page.press('ArrowRight')
    assert page.run('document.getElementById("readout").textContent').endswith(' nats')
    page.press('Escape')
    for width, height in ((390, 844), (1280, 900)):
      page.resize(width, height)
      assert page.run('document.documentElement.scrollWidth') <= width
      columns = page.run('getComputedStyle(document.querySelector(".columns")).gridTemplateColumns')
      assert len(columns.split()) == (1 if width == 390 else 2)
      page.photograph(tmp_path / f'{width}.png')
    # the switch: one column is asked for, and the other is not there
    for gate, other in (('off', 'on'), ('on', 'off')):
      ask(page, 'ape bee cat', gate=gate)
      wait_for_the_end(page, f'document.getElementById({other!r}).hidden')
      assert text_of(page, f'#{gate} .answer') and not text_of(page, f'#{other} .answer')
  assert page.complaints == []


def test_an_answer_can_be_stopped_and_asked_again(page, open_sampler):
  sampler, about = open_sampler()
  with serving(sampler, about) as url:
    page.open(url)
    ask(page, 'ape bee cat', max_new=800, gate='off', temperature=1)
    page.wait_for('document.querySelector("#off .answer").textContent.length > 20')
    # a caret blinks at the end, but not for those who want no motion
    caret = 'getComputedStyle(document.querySelector("#off .answer"), "::after").animationName'
    assert page.run(caret) == 'blink'
    reduced = {'name': 'prefers-reduced-motion', 'value': 'reduce'}
    page.call('Emulation.setEmulatedMedia', features=[reduced])
    assert page.run(caret) == 'none'
    page.run('document.getElementById("stop").click()')
    page.wait_for('document.getElementById("status").textContent == "Stopped."')
    ask(page, 'ape bee cat', max_new=8)
    wait_for_the_end(page)
  assert page.complaints == []


def test_errors_stand_on_the_page(page, open_sampler, monkeypatch):
  sampler, about = open_sampler('imported', with_index=False)
  with serving(sampler, about) as url:
    page.open(url)
    assert page.run('document.querySelectorAll("article").length') == 1
    assert page.run('document.querySelectorAll("input:disabled").length') == 5
    ask(page, 'a' * 2000)
    page.wait_for('document.getElementById("error").textContent')
    assert 'there is room for 1000' in text_of(page, '#error')
    ask(page, 'ape')
    wait_for_the_end(page)
    assert text_of(page, '#off .answer')
    with monkeypatch.context() as patch:
      patch.setattr(sampler, 'stream', lambda request: iter(1 / 0 for _ in range(1)))
      ask(page, 'ape')
      page.wait_for('document.getElementById("error").textContent')
      assert 'broke off' in text_of(page, '#error')
  ask(page, 'ape')
  page.wait_for('document.getElementById("error").textContent.includes("is it still running?")')
  # the browser's own words, and none of the page's
  assert all('net::ERR_' in complaint for complaint in page.complaints)

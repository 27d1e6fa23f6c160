"""The page's server: what it answers, what it refuses, and one question at a time."""

import http.client
import json
import re
import threading
import time
from urllib.parse import urlsplit

from click.testing import CliRunner
import pytest
from starlette.testclient import TestClient
import uvicorn

from instructretro_jax import main
from instructretro_jax.inference.answer import Request
from instructretro_jax.inference.session import make_request
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.web import exchange, server
from tests.web.conftest import serving

TEXT = 'ape bee cat '


def client_of(sampler, about=()):
  return TestClient(server.make_app(sampler, about), base_url='http://127.0.0.1')


def answer_to(sampler, **question):
  response = client_of(sampler).post('/answer', json={'max_new': 20, **question})
  assert response.status_code == 200, response.text
  assert response.headers['content-type'].startswith('application/x-ndjson')
  return [json.loads(line) for line in response.text.splitlines()]


def text_of(events, gate):
  return ''.join(e['text'] for e in events if e['event'] == 'piece' and e['gate'] == gate)


def only(events, name):
  return [event for event in events if event['event'] == name]


def test_both_answers_are_those_of_the_generator(open_sampler):
  sampler, _ = open_sampler()
  asked = {'text': TEXT, 'passages': ['kite lynx ', 'jay '], 'num_found': 2, 'seed': 7}
  events = answer_to(sampler, **asked, temperature=1)
  (start,) = only(events, 'start')
  found = sampler.retriever.find([TEXT], 2)[0]
  texts = ['kite lynx ', 'jay ', *(n.text for n in found)]
  assert [passage['text'] for passage in start['passages']] == texts
  assert [passage['document'] for passage in start['passages'][2:]] == [n.document for n in found]
  template = Request(prompt=(0,), max_new=20, temperature=1.0, seed=7, stop_at_repetition=True)
  for gate in ('off', 'on'):
    opened = Request(**{**vars(template), 'gate': float(gate == 'on')})
    request = make_request(sampler, opened, TEXT, texts, ())
    assert start['prompt'] == request.prompt
    assert start['tokens'] == len(sampler.tokenize(request.prompt))
    (expected,) = sampler.generate([request])
    assert text_of(events, gate) == expected.text != ''
    (done,) = [event for event in only(events, 'done') if event['gate'] == gate]
    assert (done['finish'], done['tokens']) == (expected.finish, len(expected.tokens))
    assert 0 < done['first_secs'] <= done['secs']
    assert [r['after_tokens'] for r in done['read']] == [count for count, _ in expected.neighbours]
  assert len(done['read']) > 1  # while it was written, too
  neighbour, (_, (first, *_)) = done['read'][0]['neighbours'][0], expected.neighbours[0]
  assert (neighbour['text'], neighbour['document']) == (first.text, first.document)
  assert (neighbour['chunk'], neighbour['score']) == (first.chunk_id, first.score)
  assert text_of(events, 'off') != text_of(events, 'on')
  # both grow side by side: neither waits for the other's end
  gates = [event['gate'] for event in only(events, 'piece')]
  assert gates.index('on') < len(gates) - 1 - gates[::-1].index('off')
  (gain,) = only(events, 'gain')
  assert ''.join(token['text'] for token in gain['tokens']) == text_of(events, 'on')
  assert any(token['shade'] for token in gain['tokens'])
  assert events[-1] == {'event': 'end'}
  # text is continued as it is
  (start,) = only(answer_to(sampler, text=TEXT, is_chat=False, gates=['off']), 'start')
  assert (start['prompt'], start['passages']) == (TEXT, [])


def test_what_cannot_be_opened_stays_closed_and_says_why(open_sampler):
  decoder, _ = open_sampler('imported')
  events = answer_to(decoder, text=TEXT, num_found=1)
  assert 'no encoder' in only(events, 'closed')[0]['reason'] and not only(events, 'gain')
  assert text_of(events, 'off') and not text_of(events, 'on')
  assert len(only(events, 'start')[0]['passages']) == 1  # an index serves a decoder, too
  (error,) = answer_to(decoder, text=TEXT, gates=['on'])
  assert error['event'] == 'error' and 'no encoder' in error['message']

  alone, _ = open_sampler(with_index=False)
  assert 'nothing to read' in only(answer_to(alone, text=TEXT), 'closed')[0]['reason']
  events = answer_to(alone, text=TEXT, passages=['kite lynx '], temperature=1)
  assert text_of(events, 'on') and not only(events, 'closed')
  assert len(only(events, 'gain')[0]['tokens']) == only(events, 'done')[1]['tokens']
  (error,) = answer_to(alone, text=TEXT, num_found=1)
  assert 'start the page with an index' in error['message']
  # 1024 positions, of which 20 new tokens take three chunks of 8
  (error,) = answer_to(alone, text='a' * 1001, is_chat=False)
  assert 'is 1001 tokens' in error['message'] and 'there is room for 1000' in error['message']


def test_the_page_trusts_only_what_it_brought(open_sampler):
  client = client_of(open_sampler('imported', with_index=False)[0], [('checkpoint', '<b>&')])
  pages = [client.get('/') for _ in range(2)]
  policies = [page.headers['content-security-policy'] for page in pages]
  nonces = [re.search(r"script-src 'nonce-([\w-]{16,})'", policy)[1] for policy in policies]
  assert nonces[0] != nonces[1]
  for page, nonce, policy in zip(pages, nonces, policies):
    assert "default-src 'none'" in policy and 'unsafe' not in policy and '*' not in policy
    tags = re.findall(r'<(?:script|style)[^>]*>', page.text)
    assert tags == [f'<style nonce="{nonce}">', f'<script nonce="{nonce}">']
    assert '&lt;b&gt;&amp;' in page.text
    assert not re.search(r'https?://|innerHTML|outerHTML|insertAdjacentHTML| on\w+=', page.text)
  for response in (pages[0], client.get('/nowhere'), client.post('/answer', json=[])):
    assert response.headers['x-content-type-options'] == 'nosniff'
    assert response.headers['cache-control'] == 'no-store'
  # another site can neither send a question nor reach the page through a name of its own
  text = client.post('/answer', content='{"text": "x"}', headers={'content-type': 'text/plain'})
  assert text.status_code == 415
  assert client.get('/', headers={'host': 'rebound.example'}).status_code == 400
  assert client.get('/answer').status_code == 405
  assert client.post('/answer', json={'text': 'x' * (1 << 20)}).status_code == 413
  for content in ('{"text"', '[]', '[' * 100_000):
    bad = client.post('/answer', content=content, headers={'content-type': 'application/json'})
    assert bad.status_code == 400 and bad.json()['message']


@pytest.mark.parametrize(
  'content, message',
  [
    ([], "a JSON object with a 'text'"),
    ({'text': ' '}, 'there is no text'),
    ({'text': 3}, 'text=3 is not a text'),
    ({'text': 'x' * 50_001}, '50001 characters of at most 50000'),
    ({'text': 'x', 'passages': 3}, 'passages=3 is not a list of texts'),
    ({'text': 'x', 'passages': [3]}, 'passages=.3,. is not a list of texts'),
    ({'text': 'x\ud83d'}, 'text: character 1 is half a character'),
    ({'text': 'x', 'gates': []}, 'gates=.* are some of'),
    ({'text': 'x', 'gates': ['ajar']}, 'gates=.*ajar'),
    ({'text': 'x', 'temperature': float('nan')}, 'temperature=nan is not a finite number'),
    ({'text': 'x', 'temperature': True}, 'temperature=True is not a finite number'),
    ({'text': 'x', 'max_new': 0}, 'max_new=0 is not between 1 and 1024'),
    ({'text': 'x', 'max_new': 2.5}, 'max_new=2.5 is not a whole number'),
    ({'text': 'x', 'seed': -1}, 'seed=-1 is not between'),
    ({'text': 'x', 'num_found': 6}, 'num_found=6 is not between 0 and 5'),
    ({'text': 'x', 'gate': 1}, 'gate.* is unknown'),
  ],
)
def test_a_wrong_question_is_refused_in_words(content, message):
  with pytest.raises(ValueError, match=message):
    exchange.page_request_of(content)


def ask(url, **question):
  """A connection that has asked, and its response."""
  connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
  body = json.dumps({'text': TEXT, 'gates': ['off'], **question})
  connection.request('POST', '/answer', body, {'Content-Type': 'application/json'})
  return connection, connection.getresponse()


def test_one_at_a_time_and_a_closed_connection_ends_its_generation(open_sampler, monkeypatch):
  sampler, about = open_sampler('imported', with_index=False)
  ended, stream = threading.Event(), sampler.stream

  def endless(request):
    try:
      while True:
        time.sleep(0.01)
        yield 'x'
    finally:
      ended.set()

  with serving(sampler, about) as url:
    monkeypatch.setattr(sampler, 'stream', endless)
    connection, response = ask(url)
    assert [json.loads(response.readline())['event'] for _ in range(3)] == ['start'] + ['piece'] * 2
    monkeypatch.setattr(sampler, 'stream', stream)
    second = ask(url, max_new=3)[1]
    assert json.loads(second.readline()) == {'event': 'waiting'}
    assert not ended.is_set()
    response.close()
    connection.close()
    assert ended.wait(timeout=30)
    rest = [json.loads(line)['event'] for line in second.read().splitlines()]
    assert rest[0] == 'start' and rest[-1] == 'end'
    # one that leaves while it waits takes nobody's turn
    ended.clear()
    monkeypatch.setattr(sampler, 'stream', endless)
    connection, response = ask(url)
    assert [json.loads(response.readline())['event'] for _ in range(2)] == ['start', 'piece']
    waiting, second = ask(url)
    assert json.loads(second.readline()) == {'event': 'waiting'}
    for each in (second, waiting, response, connection):
      each.close()
    assert ended.wait(timeout=30)
    monkeypatch.setattr(sampler, 'stream', stream)
    assert json.loads(ask(url, max_new=3)[1].read().splitlines()[-1]) == {'event': 'end'}


def test_the_command_serves_this_machine_alone(run_with_arm, tmp_path, monkeypatch):
  monkeypatch.setenv('INSTRUCTRETRO_CACHE', str(tmp_path / 'cache'))
  seen = []

  def look(service, sockets):
    app = service.config.app
    status = lambda host: TestClient(app, base_url=f'http://{host}').get('/').status_code
    seen.append((sockets[0].getsockname()[0], status('localhost'), status('demo.example')))

  monkeypatch.setattr(uvicorn.Server, 'run', look)
  given = ['demo', f'--checkpoint={run_with_arm / "retro_fit"}', f'--index={run_with_arm}']
  run = lambda *more: CliRunner().invoke(main.main, [*given, *more], catch_exceptions=False)
  assert re.search(r'http://127\.0\.0\.1:\d+ ', run('--port=0').stdout)
  assert 'no password' in run('--port=0', '--host=127.0.0.2').stderr
  assert seen == [('127.0.0.1', 200, 400), ('127.0.0.2', 200, 200)]
  with (
    server.listen('127.0.0.1', 0) as taken,
    pytest.raises(StageError, match='give another --port'),
  ):
    run(f'--port={taken.getsockname()[1]}')

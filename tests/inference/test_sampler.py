"""The sampler: batches, streams, live retrieval, and what it reads of a checkpoint."""

import dataclasses

from flax import traverse_util
import jax
import numpy as np
import pytest

from instructretro_jax.inference import sampler as sampler_module
from instructretro_jax.inference.answer import Request
from instructretro_jax.inference.decode import without_retrieval
from instructretro_jax.inference.loading import load_sampler
from instructretro_jax.inference.sampler import Sampler
from instructretro_jax.model.retro import Retro
from instructretro_jax.model.sharding import MeshConfig
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.retrieval.retriever import Neighbour
from instructretro_jax.text import vocabulary
from instructretro_jax.text.tokens import Vocabulary
from instructretro_jax.train.checkpoint_writer import write_checkpoint
from instructretro_jax.train.lazy_params import LazyArray
from tests.inference.test_cache import params_of
from tests.inference.test_decode import CONFIG
from tests.model.test_retro import logits

C, K, R = 4, 2, 8


class Letters(Vocabulary):
  """A vocabulary of 31 letters and an end token."""

  eos_id, vocab_size, unk_id = 31, 32, None

  def spelling(self, token):
    return self.decode([token])

  def token_bytes(self):
    return np.array([1] * 31 + [0])

  def _encode(self, text, continues):
    return [ord(letter) - ord('A') for letter in text]

  def _decode(self, ids, continues):
    return ''.join(chr(ord('A') + i) for i in ids if i != self.eos_id)


class EndlessLetters(Letters):
  eos_id = -1


class Echo:
  """A retriever whose neighbours are made of the text, one for 'A' and none for 'AA'."""

  def __init__(self):
    self.asked = []

  def find(self, texts, num_neighbours):
    self.asked += texts
    return [self._of(text)[: num_neighbours - len(text) + len(text.lstrip('A'))] for text in texts]

  def _of(self, text):
    turned = [text[::-1] + text, text + text[:1]]
    return [Neighbour(tokens=Letters().encode(t), text=t) for t in turned]


def make_sampler(config=CONFIG, **fields):
  return Sampler(Retro(config), params_of(config), Letters(), **fields)


REQUESTS = [
  Request(prompt='BCD', max_new=10, seed=3),
  Request(prompt='FGHIJ', max_new=3, temperature=1.5, seed=1, top_k=9),
  Request(prompt='BCD', max_new=9, temperature=1.5, seed=2, penalty=1.3),
  Request(prompt='BCD', max_new=9, gate=1.0, neighbours=('KLMNOPQ', 'RST')),
  Request(prompt='QRS', max_new=12, gate=0.5, neighbours=('KLMNOPQ', 'UVWXYZ')),
  Request(prompt='QRSTU', max_new=9, gate=1.0, temperature=1.0, seed=9),
  Request(prompt='BBC', max_new=9, gate=1.0),
]


def test_a_request_has_the_same_answer_alone_and_in_any_batch():
  sampler = make_sampler(retriever=Echo())
  together = sampler.generate(REQUESTS)
  for request, answer in zip(REQUESTS, together, strict=True):
    assert sampler.generate([request]) == [answer]
    assert 0 < len(answer.tokens) <= request.max_new
    assert answer.text == Letters().decode(list(answer.tokens))
  assert sampler.generate(REQUESTS[::-1]) == together[::-1]
  small = make_sampler(retriever=Echo(), batch_size=2).generate(REQUESTS)
  assert small == together
  assert len({answer.text for answer in together}) == len(REQUESTS)
  texts = sampler.generate([dataclasses.replace(REQUESTS[2], seed=n) for n in (2, 7)])
  assert texts[0] == together[2] and texts[1] != together[2]


def test_a_stream_gives_the_same_text_in_pieces():
  sampler = make_sampler(retriever=Echo())
  for request, answer in zip(REQUESTS, sampler.generate(REQUESTS)):
    pieces, stream = [], sampler.stream(request)
    while True:
      try:
        pieces.append(next(stream))
      except StopIteration as end:
        assert end.value == answer
        break
    assert ''.join(pieces) == answer.text and len(pieces) == len(answer.tokens)


@pytest.mark.parametrize('step', [C, 2 * C])
@pytest.mark.parametrize('prompt', ['BCDEF', 'BCDAAAA'])
def test_live_retrieval_equals_the_full_forward(prompt, step, monkeypatch):
  monkeypatch.setattr(sampler_module, 'TOKENS_PER_CALL', 3)
  retriever = Echo()
  params = params_of(CONFIG)
  sampler = Sampler(Retro(CONFIG), params, EndlessLetters(), retriever)
  request = Request(prompt=prompt, max_new=14, gate=1.0, retrieval_step=step)
  answer = sampler.generate([request])[0]
  asked = list(retriever.asked)
  # chunks end where the prompt ends: the first is short
  start = (len(prompt) - 1) % C + 1
  text = prompt + answer.text
  new_chunks = range(len(prompt), len(text), C)
  refreshed = [n for n in new_chunks if n == len(prompt) or (n - len(prompt)) % step == 0]
  in_prompt = [prompt[:start]] + [prompt[n : n + C] for n in range(start, len(prompt), C)]
  assert asked == in_prompt[::-1] + [text[n - C : n] for n in refreshed[1:]]
  assert [n for n, _ in answer.neighbours] == refreshed
  # neighbours of each chunk, for a full forward pass
  chunks = [retriever.find([chunk], K)[0] for chunk in in_prompt]
  for n in new_chunks[1:]:
    chunks.append(retriever.find([text[n - C : n]], K)[0] if n in refreshed else chunks[-1])
  chunks.append([])
  tokens = np.array([Letters().encode(text)])
  # a whole number of chunks behind the first
  tokens = np.pad(tokens, ((0, 0), (0, -(tokens.shape[1] - start) % C)))
  neighbours = np.zeros((1, len(chunks), K, R), int)
  mask = np.zeros(neighbours.shape, bool)
  for n, chunk in enumerate(chunks):
    for k, neighbour in enumerate(chunk):
      neighbours[0, n, k, : len(neighbour.tokens)] = neighbour.tokens
      mask[0, n, k, : len(neighbour.tokens)] = True
  N = -(-tokens.shape[1] // C)
  inputs = (tokens, np.ones_like(tokens), neighbours[:, :N], mask[:, :N])
  best = logits(CONFIG, params, *inputs)[0].argmax(axis=-1)
  last = len(prompt) + len(answer.tokens)
  assert len(answer.tokens) == 14
  assert best[len(prompt) - 1 : last - 1].tolist() == list(answer.tokens)


def test_finished_rows_wait_for_the_others_and_stop_texts_are_seen():
  sampler = make_sampler()
  plain = sampler.generate([Request(prompt='BCD', max_new=12)])[0]
  stop = plain.text[2:4]
  requests = [Request(prompt='BCD', max_new=12, stop=(stop,)), Request(prompt='BCD', max_new=12)]
  found = sampler.generate(requests)
  assert found[0].text == plain.text[: plain.text.index(stop)] and found[0].finish == 'stop'
  assert found[1] == plain


def test_a_checkpoint_whole_without_its_encoder_and_spread_over_devices(tmp_path, monkeypatch):
  flat = traverse_util.flatten_dict(jax.tree.map(np.asarray, params_of(CONFIG)), sep='/')
  lazy = {p: LazyArray(x.shape, x.dtype, lambda x=x: x) for p, x in flat.items()}
  monkeypatch.setattr(vocabulary, 'fingerprint', lambda _: 'letters')
  monkeypatch.setattr(vocabulary, 'load', lambda _: Letters())
  with pytest.raises(StageError, match='no checkpoint'):
    load_sampler(tmp_path / 'arm')
  write_checkpoint(tmp_path / 'arm', CONFIG, lazy, {'vocabulary': 'letters'})
  with pytest.raises(StageError, match='has a vocabulary'):
    load_sampler(tmp_path / 'arm')
  (tmp_path / 'vocabulary').mkdir()
  (tmp_path / 'vocabulary' / vocabulary.SENTENCEPIECE_FILE).touch()
  whole = load_sampler(tmp_path / 'arm', retriever=Echo())
  alone = load_sampler(tmp_path / 'arm', with_encoder=False, retriever=Echo())
  shapes = lambda params: jax.tree.map(lambda x: x.shape, params)
  assert shapes(whole.params) == shapes(params_of(CONFIG))
  assert shapes(alone.params) == shapes(without_retrieval(params_of(CONFIG)))
  assert alone.generate(REQUESTS[:1]) == whole.generate(REQUESTS[:1])
  spread = load_sampler(tmp_path / 'arm', mesh=MeshConfig(data=1, fsdp=1, tensor=2))
  parts = [x.addressable_data(0).size / x.size for x in jax.tree.leaves(spread.params)]
  assert parts.count(0.5) > 20 and set(parts) == {0.5, 1.0}
  reads = REQUESTS[3]
  assert spread.generate([reads])[0].text == whole.generate([reads])[0].text
  with pytest.raises(ValueError, match='gate=1.0, but there is no encoder'):
    alone.generate([Request(prompt='BCD', gate=1.0)])
  monkeypatch.setattr(vocabulary, 'fingerprint', lambda _: 'others')
  with pytest.raises(StageError, match='trained with another vocabulary'):
    load_sampler(tmp_path / 'arm')


def test_requests_that_cannot_be_met_are_errors_in_words():
  sampler = make_sampler()
  with pytest.raises(ValueError, match='gate=1.0, but nothing to read'):
    sampler.generate([Request(prompt='BCD', gate=1.0)])
  sampler = make_sampler(retriever=Echo())
  with pytest.raises(ValueError, match='batch_size=0'):
    make_sampler(batch_size=0)
  with pytest.raises(ValueError, match='retrieval_step=6 is no multiple of the chunk length 4'):
    sampler.generate([Request(prompt='BCD', gate=1.0, retrieval_step=6)])


def test_what_fits_alone_fits_among_others():
  decoder = dataclasses.replace(CONFIG.decoder, positions='learned', max_len=24)
  sampler = make_sampler(dataclasses.replace(CONFIG, decoder=decoder))
  # of one shape: 12 or fewer tokens, and 9 to 12 new ones; the first two need 26 together
  requests = [
    Request(prompt='BCDEFGHIJ', max_new=9, stop_at_repetition=True),
    Request(prompt='BCDEFGHIJKL', max_new=12),
    Request(prompt='BCDEFGHIJ', max_new=12),
    Request(prompt='BCDEFGHIJKLM', max_new=12),
    Request(prompt='BCDEFGHIJKLM', max_new=9),
  ]
  assert sampler.generate(requests) == [sampler.generate([one])[0] for one in requests]
  longest = [Request(prompt='B' * 21, max_new=3), Request(prompt='B' * 22, max_new=1)]
  sampler.generate(longest)
  with pytest.raises(ValueError, match='of 22 and 3 new tokens do not fit the 24'):
    sampler.check(Request(prompt='B' * 22, max_new=3))
  with pytest.raises(ValueError, match='of 22 and 3 new tokens do not fit the 24'):
    next(sampler.generate_each([*requests, Request(prompt='B' * 22, max_new=3)]))


def test_answers_come_almost_in_order():
  sampler = make_sampler(batch_size=2)
  prompts = ['B', 'B' * 9, 'C', 'D', 'C' * 9, 'E']
  found = list(sampler.generate_each([Request(prompt=p, max_new=4) for p in prompts]))
  assert [place for place, _ in found] == [0, 2, 1, 4, 3, 5]

"""Bits per byte of one text under models with five tokenizers, from logits and the text alone."""

import dataclasses

from flax import linen as nn
import jax
import numpy as np
import pytest
import tokenizers

from instructretro_jax.evaluate.perplexity import _row, _token_nats, target_bytes
from instructretro_jax.examples.sequences import Sequences
from instructretro_jax.model.config import DecoderConfig, RetroConfig
from instructretro_jax.model.execution import Execution
from instructretro_jax.model.retro import Retro
from instructretro_jax.pipeline import stage
from instructretro_jax.text import sources, vocabulary
from instructretro_jax.text.chunks import Chunks, ChunkStore
from instructretro_jax.text.corpus import Corpus
from tests.text import tokenizer_forms

CHUNK_LEN = 16
TEXTS = [
  'The tower of the harbour is 12 metres high.\n\nIt is red, said the man from Paris.',
  'Пароход идёт в гавань, а мост стоит над долиной. Ещё раз: мост!',
  'Tsche\u0301chisch und Å: e\u0301te\u0301, naïve cafe\u0301s — decomposed and composed.',
  '塔は港にあります。橋は谷にあります。🙂',
  '  def area(width, height):\n    return width * height  # </s> <|endoftext|> x\n',
]
DECODER = DecoderConfig(
  vocab_size=1, num_layers=1, width=8, num_heads=2, ff_width=8, activation='gelu', init_std=0.5,
  embedding_init_std=1.0,
)  # fmt: skip


def store_of(form, root):
  """The vocabulary of a form, and chunks of the texts."""
  folder = root / 'texts'
  folder.mkdir(parents=True)
  for n, text in enumerate([*TEXTS, *(f'Held out {n}' for n in range(9))]):
    (folder / f'{n}.txt').write_bytes(text.encode())
  documents = sources.TextFiles(str(folder / '*.txt'))
  stage.run(Corpus(sources=(documents,), heldout_fraction=0.2, num_shards=2), root)
  (root / 'vocabulary').mkdir()
  tokenizer_forms.write(form, root / 'vocabulary')
  Chunks(chunk_len=CHUNK_LEN).build(root, root / 'chunks')
  return vocabulary.load(root / 'vocabulary'), ChunkStore(root / 'chunks', 'train')


def tokens_and_bytes(form, text):
  """Tokens of a document by the library itself, and bytes of the text behind the first token."""
  whole = tokenizer_forms.load(form)
  if form == 'sentencepiece':
    ids = whole.encode(text)
    first = whole.decode(ids[:1])
  else:
    theirs = tokenizers.Tokenizer.from_file(whole.source)
    theirs.encode_special_tokens = True
    ids = theirs.encode(text).ids
    first = theirs.decode(ids[:1], skip_special_tokens=True)
  given = len(first.encode()) if '\ufffd' not in first else 1
  return [*ids, whole.eos_id], len(text.encode()) - given


@pytest.mark.parametrize('form', tokenizer_forms.FORMS)
def test_is_what_logits_and_the_text_say(form, tmp_path):
  vocab, store = store_of(form, tmp_path)
  documents = [store.provenance(n)['id'] for n in range(store.num_documents)]
  texts = [
    (tmp_path / 'texts' / name.rpartition('/')[2]).read_bytes().decode() for name in documents
  ]
  decoder = dataclasses.replace(DECODER, vocab_size=vocab.vocab_size)
  config = RetroConfig(decoder=decoder, chunk_len=CHUNK_LEN, cross_attention_layers=(0,))
  seq_len = CHUNK_LEN * len(store)  # all documents in one row
  source = Sequences(store, seq_len, vocab.pad_id)
  batch = source.examples(np.arange(1))
  with jax.enable_x64(True):
    model = Retro(config, Execution(dtype='float64'))
    params = nn.unbox(
      model.init(jax.random.key(0), batch['tokens'][:, :CHUNK_LEN], gate=0)['params']
    )
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    nats_BL = _token_nats(model, params, batch, False, 1)
    mask_BL = batch['loss_mask'] > 0
    found = _row(nats_BL, mask_BL, target_bytes(store, batch, vocab))['bits_per_byte']
    bits, num_bytes, start = 0.0, 0, 0
    apply = jax.jit(lambda t, s: model.apply({'params': params}, t, s, gate=0, method='logits'))
    logits_LV = np.asarray(apply(batch['tokens'], batch['segments']))[0]
  assert logits_LV.dtype == np.float64
  for text in texts:
    ids, behind_first = tokens_and_bytes(form, text)
    places = np.arange(start, start + len(ids) - 1)
    scores = logits_LV[places]
    top = scores.max(axis=1)
    log_p = scores[np.arange(len(places)), ids[1:]] - top
    log_p -= np.log(np.exp(scores - top[:, None]).sum(axis=1))
    bits -= log_p.sum() / np.log(2)
    num_bytes += behind_first
    start += -(-len(ids) // CHUNK_LEN) * CHUNK_LEN
  assert found == pytest.approx(bits / num_bytes, rel=1e-9)

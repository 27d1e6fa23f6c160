"""Cutting documents, the store, and texts of neighbours."""

import numpy as np
import pytest
import tensorstore as ts

from instructretro_jax.pipeline import manifest, stage
from instructretro_jax.pipeline.array_store import StoredArray, write_shard
from instructretro_jax.text import sources
from instructretro_jax.text.chunks import Chunks, ChunkStore, chunk_text, split_into_chunks
from instructretro_jax.text.corpus import Corpus, read_documents
from instructretro_jax.text.vocabulary import GivenVocabulary, TrainVocabulary, fingerprint, load


@pytest.mark.parametrize('length', [1, 63, 64, 65, 200])
def test_split_into_chunks(length):
  tokens = np.arange(1, length + 1)
  chunks, lengths = split_into_chunks(tokens, 64, pad_id=0)
  assert lengths.sum() == length and (lengths[:-1] == 64).all() and lengths[-1] > 0
  np.testing.assert_array_equal(chunks.reshape(-1)[:length], tokens)
  assert (chunks.reshape(-1)[length:] == 0).all()


@pytest.fixture
def root(tmp_path, tiny_documents):
  root = tmp_path / 'run'
  pattern = str(tiny_documents / '*.txt')
  stage.run(Corpus(sources=(sources.TextFiles(pattern),), heldout_fraction=0.3, num_shards=2), root)
  stage.run(TrainVocabulary(vocab_size=320), root)
  stage.run(Chunks(chunk_len=16), root)
  return root


def test_chunks_are_the_documents(root):
  vocab = load(root / 'vocabulary')
  for split in ('train', 'heldout'):
    store = ChunkStore(root / 'chunks', split)
    documents = [d for s in range(2) for d in read_documents(root / 'corpus', split, s)]
    assert store.num_documents == len(documents) == store.document[-1] + 1
    chunks = np.arange(len(store))[::-1].reshape(-1, 1)
    np.testing.assert_array_equal(store.documents(chunks), store.document[chunks])
    for n, document in enumerate(documents):
      rows = np.flatnonzero(store.document == n)
      ids = np.concatenate([store.tokens[r][: store.length[r]] for r in rows])
      assert ids[-1] == vocab.eos_id
      assert vocab.decode(ids.tolist()) == document.text
      assert store.provenance(n)['id'] == document.id


def test_neighbour_text_stays_in_its_document(root):
  store = ChunkStore(root / 'chunks', 'train')
  ids = np.array([[*range(len(store)), -1]])
  tokens, mask = store.neighbour_tokens(ids, pad_id=0)
  assert tokens.shape == (1, len(store) + 1, 32)
  assert not mask[0, -1].any() and not tokens[0, -1].any()
  for n in range(len(store)):
    is_last = n + 1 == len(store) or store.document[n + 1] != store.document[n]
    expected = store.length[n] + (0 if is_last else store.length[n + 1])
    assert mask[0, n].sum() == expected
    np.testing.assert_array_equal(
      tokens[0, n, : store.length[n]], store.tokens[n][: store.length[n]]
    )
    if not is_last:
      np.testing.assert_array_equal(tokens[0, n, 16:], store.tokens[n + 1] * (mask[0, n, 16:]))


def test_round_trip_is_exact(root):
  vocab = load(root / 'vocabulary')
  for text in [
    '',
    ' ',
    ' a  b ',
    'a\n\n\tb\r\n',
    'x \u2581 y\u2581',
    'naïve 日本 \U0001f600 \x00',
    '<0x0A>',
  ]:
    assert vocab.decode(vocab.encode(text)) == text
  text = 'The tower 12\n'
  sizes = vocab.token_bytes()
  assert sum(sizes[i] for i in vocab.encode(text + '\u2581é')) == len((text + '\u2581é').encode())


def test_given_vocabulary_is_the_same_one(root, tmp_path):
  given = GivenVocabulary(path=str(root / 'vocabulary' / 'sentencepiece.model'))
  stage.run(given, tmp_path / 'other')
  assert fingerprint(load(tmp_path / 'other' / 'vocabulary')) == fingerprint(
    load(root / 'vocabulary')
  )


def test_a_lost_shard_comes_back_with_the_same_bytes(root):
  import shutil

  before = stage.run(Chunks(chunk_len=16), root).files
  folder = root / 'chunks'
  (folder / 'manifest.json').unlink()
  (folder / 'train-documents-00001.parquet').unlink()
  shutil.rmtree(folder / 'train-tokens-00001.zarr')
  assert stage.run(Chunks(chunk_len=16), root).files == before


def test_chunk_text(root):
  store, vocab = ChunkStore(root / 'chunks', 'train'), load(root / 'vocabulary')
  document = next(read_documents(root / 'corpus', 'train', 0))
  assert document.text.startswith(chunk_text(store, vocab, 0))


def test_array_gathers_rows_of_any_shape(tmp_path):
  x = np.arange(60, dtype=np.uint16).reshape(20, 3)
  write_shard(tmp_path, 'x', 0, x[:11])
  write_shard(tmp_path, 'x', 1, x[11:])
  array = StoredArray(tmp_path, 'x')
  rows = np.array([[19, 0, 0], [11, 10, 5]])
  np.testing.assert_array_equal(array[rows], x[rows])
  np.testing.assert_array_equal(array[9:13], x[9:13])
  assert array[np.zeros((0, 2), int)].shape == (0, 2, 3)
  with pytest.raises(IndexError, match='20 rows'):
    array[np.array([20])]
  with pytest.raises(manifest.StageError, match="'y'"):
    StoredArray(tmp_path, 'y')


def test_a_missing_shard_is_named(tmp_path):
  for shard in range(3):
    write_shard(tmp_path, 'x', shard, np.full((2, 1), shard, np.int32))
  (tmp_path / 'x-00001.zarr').rename(tmp_path / 'elsewhere')
  with pytest.raises(manifest.StageError, match='x-00001.zarr is missing .1 of 3 shards'):
    StoredArray(tmp_path, 'x')


def test_shards_are_in_the_order_of_their_numbers(tmp_path):
  for shard in range(2):
    write_shard(tmp_path, 'x', shard, np.full((1, 1), shard, np.int32))
  (tmp_path / 'x-00000.zarr').rename(tmp_path / 'x-0.zarr')  # sorts behind x-00001 as text
  assert StoredArray(tmp_path, 'x')[:].ravel().tolist() == [0, 1]


def test_a_row_is_read_in_a_small_block(tmp_path):
  tokens = np.arange(3000 * 64, dtype=np.uint16).reshape(3000, 64)
  write_shard(tmp_path, 'tokens', 0, tokens)
  array = StoredArray(tmp_path, 'tokens')
  rows = np.array([[2999, 5], [5, 700]])
  np.testing.assert_array_equal(array[rows], tokens[rows])
  grid = ts.open(_spec('zarr3', tmp_path / 'tokens-00000.zarr')).result().chunk_layout
  assert grid.read_chunk.shape == (128, 64)  # 16 kB
  assert grid.write_chunk.shape == (1 << 16, 64)  # few files


def test_arrays_of_another_format_are_opened(tmp_path):
  lengths = np.arange(10, dtype=np.int32)
  spec = _spec('zarr', tmp_path / 'length-00000.zarr')
  ts.open(spec, create=True, dtype=ts.int32, shape=[10]).result().write(lengths).result()
  np.testing.assert_array_equal(StoredArray(tmp_path, 'length')[:], lengths)


def _spec(driver, path):
  return {'driver': driver, 'kvstore': {'driver': 'file', 'path': str(path)}}

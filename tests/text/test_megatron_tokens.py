"""Token files of Megatron as documents."""

import struct

import numpy as np
import pytest

from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.text.documents import Problems
from instructretro_jax.text.megatron_tokens import MegatronTokens, read_index
from tests.text import tokenizer_forms

TEXTS = ['One text.', 'Второй текст, в двух частях.', 'The third ends here.']


def write(folder, vocab, texts=TEXTS, sequences_each=1):
  """NAME.idx and NAME.bin as Megatron's preprocess_data writes them, 16 bits a token."""
  sequences, documents = [], [0]
  for text in texts:
    ids = [*vocab.encode(text), vocab.eos_id]
    sequences += [list(part) for part in np.array_split(ids, sequences_each)]
    documents.append(len(sequences))
  lengths = [len(ids) for ids in sequences]
  offsets = np.cumsum([0, *lengths[:-1]]) * 2
  (folder / 'a.bin').write_bytes(b''.join(np.array(ids, '<u2').tobytes() for ids in sequences))
  header = b'MMIDIDX\x00\x00' + struct.pack('<QBQQ', 1, 8, len(sequences), len(documents))
  arrays = (np.array(lengths, '<i4'), np.array(offsets, '<i8'), np.array(documents, '<i8'))
  (folder / 'a.idx').write_bytes(header + b''.join(array.tobytes() for array in arrays))


@pytest.fixture
def tokens(tmp_path):
  """A folder with a tokenizer, and the source that reads what is written there."""
  vocab = tokenizer_forms.load('gpt2')
  folder = tmp_path / 'tokenizer'
  folder.mkdir()
  written = tokenizer_forms.write('gpt2', folder)
  return vocab, MegatronTokens(str(tmp_path / '*.idx'), str(written / 'tokenizer.json'))


def read(source):
  problems = Problems()
  return list(source.read(problems)), problems.to_json()


@pytest.mark.parametrize('sequences_each', [1, 3])
def test_documents_come_back_as_text(tmp_path, tokens, sequences_each):
  vocab, source = tokens
  write(tmp_path, vocab, sequences_each=sequences_each)
  documents, problems = read(source)
  assert [d.text for d in documents] == TEXTS and problems['counts'] == {}
  assert [d.id for d in documents] == ['a.idx:1', 'a.idx:2', 'a.idx:3']


def test_what_is_cut_short_is_reported_and_the_rest_is_read(tmp_path, tokens):
  vocab, source = tokens
  write(tmp_path, vocab)
  whole = (tmp_path / 'a.bin').read_bytes()
  (tmp_path / 'a.bin').write_bytes(whole[:-4])
  documents, problems = read(source)
  assert [d.text for d in documents] == TEXTS[:2] and problems['counts'] == {'broken_file': 1}
  (tmp_path / 'a.bin').unlink()
  assert read(source)[1]['counts'] == {'unreadable_file': 1}


@pytest.mark.parametrize(
  'content',
  [
    b'',
    b'{"text": 1}',
    b'MMIDIDX\x00\x00',
    b'MMIDIDX\x00\x00' + struct.pack('<QBQQ', 1, 8, 2**60, 2**60),
    b'MMIDIDX\x00\x00' + struct.pack('<QBQQ', 9, 8, 0, 0),
    b'MMIDIDX\x00\x00' + struct.pack('<QBQQ', 1, 8, 0, 2) + struct.pack('<qq', 7, 3),
  ],
)
def test_an_index_that_is_none_is_one_problem(tmp_path, tokens, content):
  (tmp_path / 'a.idx').write_bytes(content)
  (tmp_path / 'a.bin').write_bytes(b'12')
  documents, problems = read(tokens[1])
  assert not documents and sum(problems['counts'].values()) == 1


def test_tokens_of_another_tokenizer_are_reported(tmp_path, tokens):
  vocab, source = tokens
  write(tmp_path, vocab)
  bad = np.frombuffer((tmp_path / 'a.bin').read_bytes(), '<u2').copy()
  bad[0] = 60_000
  (tmp_path / 'a.bin').write_bytes(bad.tobytes())
  assert read(source)[1]['counts'] == {'wrong_tokenizer': 1}


def test_without_a_tokenizer_there_is_no_text(tmp_path):
  with pytest.raises(StageError, match='tokenizer.json does not exist'):
    read(MegatronTokens(str(tmp_path), str(tmp_path / 'tokenizer.json')))


def test_the_index_is_mapped_and_not_read(tmp_path, tokens):
  write(tmp_path, tokens[0])
  index = read_index(tmp_path / 'a.idx')
  assert isinstance(index.lengths, np.memmap) and index.documents.tolist() == [0, 1, 2, 3]

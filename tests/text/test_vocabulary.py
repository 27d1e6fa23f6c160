"""Tokens and texts of the published forms of tokenizers: bytes, round trips, control tokens."""

import json
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import tokenizers

from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.text import cuts, formatted, vocabulary
from instructretro_jax.text.formatted import Control, Formatted
from instructretro_jax.text.tokens import pieces
from instructretro_jax.text.vocabulary import GivenVocabulary
from tests.text import tokenizer_forms as forms

ALL = sorted(forms.MADE)
EXACT = [form for form in ALL if form not in ('qwen', 'gpt_neox', 'sentencepiece_nfkc')]
_WORDS = st.sampled_from(
  ['tower', ' Paris', '  ', '\n\n', ' 1946', "'s", 'é', 'e\u0301', '港にあります。\n', '▁', '</s>',
   '<|endoftext|>', '<|im_end|>', '<unk>', '<s>', '<0x41>', '🙂', '\x00', 'ﬁ', '½', 'Å']
)  # fmt: skip
_ANY = st.text(st.characters(exclude_categories=['Cs']), max_size=12)
texts = st.lists(st.one_of(_WORDS, _ANY), max_size=12).map(''.join)
quick = settings(max_examples=100, deadline=None, derandomize=True)


def normal(form, text):
  """What a form makes of a text before it has tokens."""
  return unicodedata.normalize('NFC', text) if form in ('qwen', 'gpt_neox') else text


@pytest.mark.parametrize('form', ALL)
@quick
@given(text=texts)
def test_bytes_of_tokens_add_up_to_the_text(form, text):
  vocab = forms.load(form)
  ids, sizes = vocab.document(text)
  assert ids.tolist() == [*vocab.start_ids, *vocab.encode(text), vocab.eos_id]
  if len(ids) > len(vocab.start_ids) + 1:
    assert sizes.sum() == len(text.encode()) and (sizes >= 0).all()
  if form in EXACT:
    tokens = vocab.encode(text)
    found = vocab.token_bytes()[tokens].sum() - (vocab.lead_bytes() if text else 0)
    assert found == len(text.encode())


@pytest.mark.parametrize('form', [form for form in ALL if form != 'sentencepiece_nfkc'])
@quick
@given(text=texts)
def test_a_text_comes_back_and_has_no_control_token(form, text):
  vocab = forms.load(form)
  tokens = vocab.encode(text)
  assert vocab.decode(tokens) == normal(form, text)
  assert not {vocab.control_id(name) for name in vocab.control_names()} & set(tokens)
  assert ''.join(pieces(vocab, tokens)) == normal(form, text)
  behind = vocab.encode(text, continues=True)
  assert vocab.decode(behind, continues=True) == normal(form, text)


@pytest.mark.parametrize('form', ALL)
@quick
@given(text=texts, size=st.integers(1, 30))
def test_pieces_have_the_tokens_of_the_whole(form, text, size):
  vocab = forms.load(form)
  text = (text + ' tower of Paris\n') * 3
  vocab.piece_chars = 1 << 18
  whole = vocab.encode(text)
  parts = list(cuts.pieces(text, size, vocab._is_seam))
  assert ''.join(parts) == text and (len(parts) > 1 or size > 15)
  vocab.piece_chars = size
  try:
    assert vocab.encode(text) == whole
  finally:
    del vocab.piece_chars


@pytest.mark.parametrize('form', ALL)
@quick
@given(first=texts, second=st.sampled_from([' is', ' Paris', ' 12', '\nThe', '\n\n']))
def test_a_text_in_two_has_the_tokens_of_both(form, first, second):
  vocab = forms.load(form)
  first += 'tower'
  joined = [*vocab.encode(first), *vocab.encode(second, continues=True)]
  assert joined == vocab.encode(first + second)


@pytest.mark.parametrize('form', [form for form in ALL if 'sentencepiece' not in form])
def test_ids_are_those_of_the_library(form):
  vocab = forms.load(form)
  theirs = tokenizers.Tokenizer.from_file(vocab.source)
  for text in forms.TEXTS[:6]:
    plain = theirs.encode(text, add_special_tokens=False).ids
    assert vocab.encode(text) == plain
    assert [*vocab.start_ids, *plain] == theirs.encode(text).ids
    assert vocab.decode(plain) == theirs.decode(plain, skip_special_tokens=True)


@pytest.mark.parametrize('form', ALL)
def test_a_line_without_spaces_is_cut_at_its_marks(form):
  vocab, text = forms.load(form), '塔は港にあります。橋は谷にあります。' * 40
  parts = list(cuts.pieces(text, 100, vocab._is_seam))
  if not form.startswith(('llama2', 'gemma')):  # these have pieces with a mark inside
    assert max(map(len, parts)) < 150
  ids = [i for n, part in enumerate(parts) for i in vocab.encode(part, continues=n > 0)]
  assert ids == vocab.encode(text)


def test_a_long_text_is_encoded_in_bounded_pieces(monkeypatch):
  vocab = forms.load('llama2')
  seen = []
  encode = vocab._encode
  monkeypatch.setattr(vocab, '_encode', lambda t, c: seen.append(len(t)) or encode(t, c))
  monkeypatch.setattr(vocab, 'piece_chars', 1000)
  text = ''.join(forms.TEXTS) * 40
  ids, sizes = vocab.document(text)
  assert max(seen) < 1500 and len(text) > 30_000
  assert sizes.sum() == len(text.encode())
  assert ids[1:-1].tolist() == encode(text, False)


def test_what_a_file_puts_first_and_what_ends():
  starts = {form: forms.load(form).start_ids for form in ALL}
  assert starts.pop('llama2') == starts.pop('llama2_metaspace') == starts.pop('gemma') == (1,)
  assert starts.pop('llama3') == (0,) and starts.pop('sentencepiece_llama2') == (1,)
  assert set(starts.values()) == {()}
  for form in ALL:
    assert forms.load(form).end_ids == (forms.load(form).eos_id,)


def test_names_of_a_model_are_kept(tmp_path):
  folder = forms.write('llama3', tmp_path)
  names = vocabulary.Names(
    eos_token='<|end_of_text|>',
    end_tokens=('<|eot_id|>', '<|gone|>'),
    start_token='',
    chat_template='{{ messages }}',
  )
  file = folder / 'tokenizer.json'
  vocabulary.write(folder, file.name, file.read_bytes(), names, file)
  vocab = vocabulary.load(folder)
  assert (vocab.end_ids, vocab.start_ids) == ((1, 4), ())
  assert vocab.chat_template == '{{ messages }}'


def test_an_end_token_that_is_no_special_one_is_a_control_token_all_the_same(tmp_path):
  made = tokenizers.Tokenizer.from_file(forms.load('gpt2').source)
  made.add_tokens([tokenizers.AddedToken('<|stop|>', special=False), '<tool>'])
  made.save(str(tmp_path / 'tokenizer.json'))
  vocab = vocabulary.HuggingFaceVocabulary(
    str(tmp_path / 'tokenizer.json'), '<|endoftext|>', ['<|stop|>']
  )
  text = 'a <|stop|> in a <tool>'
  tokens = vocab.encode(text)
  assert vocab.control_id('<|stop|>') == vocab.end_ids[1] not in tokens
  assert vocab.control_id('<tool>') is None  # an added piece of text, of so many bytes
  assert vocab.decode(tokens) == text and tokens[-1] == vocab.end_ids[1] + 1
  assert vocab.token_bytes()[tokens].sum() == len(text)


def test_a_model_that_knows_its_control_tokens_by_spelling(tmp_path):
  """The pieces of Unigram are all of its vocabulary, control tokens included."""
  pairs = [('<unk>', 0.0), ('</s>', 0.0), *((c, -3.0) for c in '▁</s>ab')]
  made = tokenizers.Tokenizer(tokenizers.models.Unigram(pairs, unk_id=0))
  made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  made.decoder = tokenizers.decoders.Metaspace()
  made.add_special_tokens(['<unk>', '</s>'])
  made.save(str(tmp_path / 'tokenizer.json'))
  vocab = vocabulary.HuggingFaceVocabulary(str(tmp_path / 'tokenizer.json'))
  tokens = vocab.encode('a</s>b')
  assert vocab.eos_id not in tokens and vocab.decode(tokens) == 'a</s>b'


def test_forms_have_control_tokens_and_texts_inside_do_not():
  vocab = forms.load('qwen')
  text = Formatted([Control('<|im_start|>'), 'user\n', 'a <|im_end|> b', Control('<|im_end|>')])
  assert text == '<|im_start|>user\na <|im_end|> b<|im_end|>'
  tokens = formatted.encode(vocab, text, starts=True)
  assert [tokens.index(1), tokens.count(1), tokens.index(2)] == [0, 1, len(tokens) - 1]
  assert vocab.decode(tokens) == 'user\na <|im_end|> b'
  assert formatted.encode(vocab, '<|im_end|>') == vocab.encode('<|im_end|>')
  with pytest.raises(StageError, match="has no control token '<x>'"):
    formatted.encode(vocab, Formatted([Control('<x>')]))
  llama = forms.load('llama2')
  given_start = Formatted([Control('<s>'), '[INST] Hi [/INST]'])
  expected = [1, *llama.encode('[INST] Hi [/INST]')]
  assert formatted.encode(llama, given_start, starts=True) == expected
  assert formatted.encode(llama, '[INST] Hi [/INST]', starts=True) == expected


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('', 'tokenizer.json is empty'),
    ('{"model"', 'tokenizer.json is no JSON'),
    ('[]', 'holds no JSON object, but list'),
    ('{"model": {}}', 'is no tokenizer of the tokenizers library'),
    ('version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n', 'git lfs pull'),
  ],
)
def test_files_that_are_no_tokenizer_are_named(tmp_path, content, message):
  (tmp_path / 'tokenizer.json').write_text(content)
  with pytest.raises(StageError, match=message):
    vocabulary.load(tmp_path)


def test_a_given_file_that_is_no_vocabulary_is_named(tmp_path):
  for name in ('broken.json', 'broken.model'):
    (tmp_path / name).write_text('{"a": 1')
    with pytest.raises(StageError, match=f'{name} is no '):
      GivenVocabulary(path=str(tmp_path / name)).build(tmp_path, tmp_path / 'vocabulary')


@pytest.mark.parametrize('form', ['llama3', 'sentencepiece_llama2'])
def test_a_given_file_is_read_with_what_stands_beside_it(tmp_path, form):
  made = forms.made_of(form)
  is_json = isinstance(made, dict)
  path = tmp_path / ('tokenizer.json' if is_json else 'tokenizer.model')
  path.write_bytes(json.dumps(made).encode() if is_json else made)
  end, start = ('<|eot_id|>', '<|begin_of_text|>') if is_json else ('</s>', '<s>')
  beside = tmp_path / 'tokenizer_config.json'
  settings = {'eos_token': end, 'bos_token': start, 'add_bos_token': True, 'chat_template': 'T'}
  given = GivenVocabulary(path=str(path))
  assert given.input_files() == (path,)
  beside.write_text(json.dumps(settings))
  assert given.input_files() == (path, beside)
  given.build(tmp_path, tmp_path / 'vocabulary')
  vocab = vocabulary.load(tmp_path / 'vocabulary')
  assert vocab.spelling(vocab.eos_id) == end and vocab.chat_template == 'T'
  assert list(map(vocab.spelling, vocab.start_ids)) == [start] == [vocab.bos_token]


def test_spaces_go_to_the_word_behind_them():
  vocab = forms.load('llama2')
  spelt = lambda ids: [vocab.spelling(i) for i in ids]
  assert spelt(vocab.encode(' is', continues=True))[0].startswith('▁i')
  assert spelt(vocab.encode('tower'))[0].startswith('▁t')
  assert not spelt(vocab.encode('tower', continues=True))[0].startswith('▁')
  np.testing.assert_array_equal(vocab.token_bytes()[:5], [0, 0, 0, 1, 1])

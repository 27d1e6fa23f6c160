"""Tokenizers in the forms that are published, trained on a page of text."""

import functools
import io
import json

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from instructretro_jax.text import vocabulary

TEXTS = [
  'The tower of the harbour is 12 metres high, and Paris is the capital of France.',
  "It's said that the bridge wasn't painted red:\n\n  - in 1946,\n  - in 2011.\n",
  'Пароход идёт в гавань, а мост стоит над долиной.',
  '塔は港にあります。橋は谷にあります。',
  'def area(width, height):\n    return width * height  # metres\n',
  'Café Zürich naïve señor — “quoted” text … and so on.',
] * 3
_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{%s}|"
  r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_BYTES = [f'<0x{byte:02X}>' for byte in range(256)]


def _byte_level(controls, pre_tokenizer, normalizer=None):
  made = tokenizers.Tokenizer(models.BPE())
  made.pre_tokenizer, made.decoder = pre_tokenizer, decoders.ByteLevel()
  if normalizer is not None:
    made.normalizer = normalizer
  trainer = trainers.BpeTrainer(
    vocab_size=420,
    special_tokens=controls,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  made.train_from_iterator(TEXTS, trainer)
  return made


def _regex(digits):
  split = pre_tokenizers.Split(tokenizers.Regex(_SPLIT % digits), 'isolated')
  byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  return pre_tokenizers.Sequence([split, byte_level])


def _starts_with(token, number):
  return processors.TemplateProcessing(single=f'{token} $A', special_tokens=[(token, number)])


def gpt2():
  plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
  return json.loads(_byte_level(['<|endoftext|>'], plain).to_str())


def llama3():
  names = ['<|begin_of_text|>', '<|end_of_text|>', '<|start_header_id|>', '<|end_header_id|>']
  made = _byte_level([*names, '<|eot_id|>'], _regex('1,3'))
  byte_level = processors.ByteLevel(trim_offsets=False)
  made.post_processor = processors.Sequence([byte_level, _starts_with(names[0], 0)])
  content = json.loads(made.to_str())
  content['model']['ignore_merges'] = True
  return content


def qwen():
  controls = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
  return json.loads(_byte_level(controls, _regex('1'), normalizers.NFC()).to_str())


def llama2(is_metaspace=False):
  made = tokenizers.Tokenizer(models.BPE(unk_token='<unk>', fuse_unk=True, byte_fallback=True))
  made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme='always')
  names = ['<unk>', '<s>', '</s>']
  trainer = trainers.BpeTrainer(
    vocab_size=420, special_tokens=[*names, *_BYTES], show_progress=False, limit_alphabet=60
  )
  made.train_from_iterator(TEXTS, trainer)
  made.post_processor = _starts_with('<s>', 1)
  if is_metaspace:
    scheme = {'replacement': '▁', 'prepend_scheme': 'always', 'split': False}
    made.pre_tokenizer = pre_tokenizers.Metaspace(**scheme)
    made.decoder = decoders.Sequence(
      [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(),
       decoders.Strip(' ', 1, 0)]
    )  # fmt: skip
  else:
    made.normalizer = normalizers.Sequence(
      [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
    )
    made.decoder = decoders.Sequence(
      [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(),
       decoders.Strip(' ', 1, 0)]
    )  # fmt: skip
  content = json.loads(made.to_str())
  if not is_metaspace:
    content['pre_tokenizer'] = None
  content['added_tokens'] = [t for t in content['added_tokens'] if t['content'] in names]
  return content


def gemma():
  """No space is put first, and runs of spaces and of line ends are tokens of their own."""
  spelt = json.dumps(llama2(), ensure_ascii=False)
  content = json.loads(spelt.replace('"<s>"', '"<bos>"').replace('"</s>"', '"<eos>"'))
  content['normalizer'] = {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '▁'}
  content['decoder']['decoders'] = content['decoder']['decoders'][:-1]
  vocab, merges = content['model']['vocab'], content['model']['merges']
  for token, parts in (('▁▁', ['▁', '▁']), ('▁▁▁', ['▁▁', '▁'])):
    merges.insert(len(token) - 2, parts)
    vocab[token] = vocab.get(token, 1 + max(vocab.values()))
  return _with_added(content, ['▁▁', '▁▁▁', '\n\n', '\n\n\n'], normalized=False)


def gpt_neox():
  """Of Pythia: runs of spaces are added tokens."""
  plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
  controls = ['<|endoftext|>', '<|padding|>']
  content = json.loads(_byte_level(controls, plain, normalizers.NFC()).to_str())
  return _with_added(content, [' ' * n for n in range(24, 1, -1)], normalized=True)


def _with_added(content, tokens, normalized):
  flags = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'special'), False)
  vocab = content['model']['vocab']
  for token in tokens:
    known = max([*vocab.values(), *(t['id'] for t in content['added_tokens'])])
    added = {'id': vocab.get(token, known + 1), 'content': token, 'normalized': normalized}
    content['added_tokens'].append({**added, **flags})
  content['added_tokens'].sort(key=lambda token: token['id'])
  return content


def sentencepiece_model(**settings):
  """A model as it is trained here, or with other settings."""
  model = io.BytesIO()
  settings = {'pad_id': 0, 'eos_id': 1, 'unk_id': 2, 'bos_id': -1} | settings
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter('\n'.join(TEXTS).splitlines()), model_writer=model,
    model_type='bpe', split_digits=True, remove_extra_whitespaces=False,
    hard_vocab_limit=False, minloglevel=2,
    **{'vocab_size': 400, 'byte_fallback': True, 'add_dummy_prefix': False,
       'normalization_rule_name': 'identity', **settings},
  )  # fmt: skip
  return model.getvalue()


MADE = {
  'gemma': gemma,
  'gpt2': gpt2,
  'gpt_neox': gpt_neox,
  'llama2': llama2,
  'llama2_metaspace': lambda: llama2(is_metaspace=True),
  'llama3': llama3,
  'qwen': qwen,
  'sentencepiece': sentencepiece_model,
  'sentencepiece_llama2': lambda: sentencepiece_model(
    add_dummy_prefix=True, pad_id=-1, unk_id=0, bos_id=1, eos_id=2
  ),
  'sentencepiece_nfkc': lambda: sentencepiece_model(normalization_rule_name='nmt_nfkc'),
}
FORMS = ('gpt2', 'llama2', 'llama3', 'qwen', 'sentencepiece')
ENDS = {'llama3': '<|end_of_text|>', 'qwen': '<|im_end|>'}
STARTS = {'sentencepiece_llama2': '<s>'}


@functools.cache
def made_of(form):
  return MADE[form]()


def write(form, folder, chat_template=None):
  """The stage folder of a vocabulary."""
  made = made_of(form)
  is_json = isinstance(made, dict)
  file = vocabulary.HUGGING_FACE_FILE if is_json else vocabulary.SENTENCEPIECE_FILE
  names = vocabulary.Names(
    eos_token=ENDS.get(form), start_token=STARTS.get(form), chat_template=chat_template
  )
  content = json.dumps(made).encode() if is_json else made
  vocabulary.write(folder, file, content, names, folder / file)
  return folder


_FOLDERS = []


@functools.cache
def load(form):
  """The vocabulary of a form."""
  import tempfile

  _FOLDERS.append(tempfile.TemporaryDirectory())
  from pathlib import Path

  return vocabulary.load(write(form, Path(_FOLDERS[-1].name)))

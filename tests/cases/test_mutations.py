"""Valid inputs with something broken: read, counted as a problem, or refused in one line."""

from collections.abc import Callable
import gzip
import json
from pathlib import Path
import random
import struct
from typing import Any, NamedTuple

from click.testing import CliRunner
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from instructretro_jax import main
from instructretro_jax.inference.answer import Request
from instructretro_jax.inference.prompt_files import read_prompts
from instructretro_jax.pipeline import notes
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.questions.instruction_sets import Dialogues, InstructionRows, QaFiles
from instructretro_jax.questions.question_sets import JsonLinesQuestions
from instructretro_jax.questions.questions import Questions
from instructretro_jax.text.corpus import Corpus
from instructretro_jax.text.megatron_tokens import MegatronTokens
from instructretro_jax.text.sources import Arrow, JsonLines, Parquet, TextFiles
from tests.cases.test_outputs import RUN
from tests.text import tokenizer_forms as forms

TEXTS = [f'The tower number {n} is {n * 7} metres high, naïve 日本.' for n in range(8)]
DOCUMENTS = [{'id': f'd{n}', 'text': text, 'n': n} for n, text in enumerate(TEXTS)]
QUESTIONS = [
  {'question': f'q{n}?', 'passages': [{'title': 'T', 'text': text}], 'answers': ['x'],
   'options': ['x', 'y'], 'history': ['a?', 'b.'], 'system': 'S.', 'style': 'span'}
  for n, text in enumerate(TEXTS)
]  # fmt: skip
SQUAD = [
  {'title': 'T', 'paragraphs': [{'context': text, 'qas': [{'id': n, 'question': f'q{n}?',
   'answers': [{'text': 'tower', 'answer_start': 4}]}]}]}
  for n, text in enumerate(TEXTS)
]  # fmt: skip
THEIRS = [
  {'question': f'User: q{n}?\n\nAssistant:', 'answer': {'value': 'x', 'aliases': ['X']},
   'ctxs': [{'title': 'T', 'text': text}], 'choices': {'text': ['x', 'y'], 'label': ['1', '2']},
   'label': 1}
  for n, text in enumerate(TEXTS)
]  # fmt: skip
SAID = [
  {'conversations': [{'from': 'human', 'value': f'q{n}?'}, {'from': 'gpt', 'value': text}],
   'system': 'S.'}
  for n, text in enumerate(TEXTS)
]  # fmt: skip
TASKS = [{'instruction': f'Do {n}.', 'input': text, 'output': 'x'} for n, text in enumerate(TEXTS)]
PROMPTS = [
  {'prompt': text, 'id': n, 'context': ['c'], 'seed': n, 'stop': ['x'], 'temperature': 0.5,
   'gate': 1, 'max_new': 3, 'top_k': 5, 'stop_at_repetition': True}
  for n, text in enumerate(TEXTS)
]  # fmt: skip

lines = lambda rows: '\n'.join(map(json.dumps, rows)).encode()
array = lambda rows: json.dumps(rows).encode()


def table(is_dictionary=False):
  texts = pa.array(TEXTS)
  return pa.table({'text': texts.dictionary_encode() if is_dictionary else texts, 'n': range(8)})


def parquet(is_dictionary=False):
  sink = pa.BufferOutputStream()
  pq.write_table(table(is_dictionary), sink)
  return sink.getvalue().to_pybytes()


def arrow(make, is_dictionary=False):
  sink = pa.BufferOutputStream()
  with make(sink, table(is_dictionary).schema) as writer:
    writer.write_table(table(is_dictionary))
  return sink.getvalue().to_pybytes()


def tokens():
  """The two files of Megatron: .idx and .bin."""
  vocab = forms.load('gpt2')
  ids = [np.array([*vocab.encode(text), vocab.eos_id], np.int32) for text in TEXTS]
  lengths = np.array([len(some) for some in ids], np.int32)
  offsets = np.concatenate([[0], np.cumsum(lengths[:-1]) * 4]).astype(np.int64)
  head = struct.pack('<9sQBQQ', b'MMIDIDX\x00\x00', 1, 4, len(ids), len(ids) + 1)
  index = head + lengths.tobytes() + offsets.tobytes() + np.arange(9, dtype=np.int64).tobytes()
  return index, np.concatenate(ids).tobytes()


class Input(NamedTuple):
  """A small valid input: a file, and what a user has read it."""

  name: str
  content: bytes
  read: Callable[[Path, Path], Any]  # of the file and a fresh folder
  packed: Callable[[bytes], bytes] = bytes  # of content that is changed before it is packed


def corpus(source):
  return lambda path, folder: Corpus(sources=(source(path),), heldout_fraction=0.4).build(
    folder, folder / 'corpus'
  )


def questions(one):
  return lambda path, folder: Questions(sets=(one(str(path)),), heldout_fraction=1.0).build(
    folder, folder / 'questions'
  )


def token_files(path, folder):
  other = path.with_suffix('.idx' if path.suffix == '.bin' else '.bin')
  other.write_bytes(tokens()[other.suffix == '.bin'])
  source = MegatronTokens(str(path.with_suffix('.idx')), forms.load('gpt2').source)
  return corpus(lambda _: source)(path, folder)


def text_files(path, folder):
  for n in range(6):
    (folder / f'{n}.txt').write_text(TEXTS[n])
  return corpus(lambda p: TextFiles((str(p), f'{folder}/?.txt')))(path, folder)


def prompts(path, folder):
  del folder
  return read_prompts(path, Request(prompt=(0,)))


def command_line(path, folder):
  """`run --dry_run` with a gin file, or with the options that stand in a file."""
  options = OVERRIDES
  if path.suffix == '.txt':  # as a shell gives them
    options = path.read_bytes().replace(b'\0', b'')
    path = folder / 'run.gin'
    path.write_text(RUN)
  given = options.decode(errors='surrogateescape').splitlines()
  arguments = ['run', f'--gin_file={path}', f'--root={folder}/root', '--dry_run', *given]
  result = CliRunner().invoke(main.main, arguments)
  if result.exception is not None and not isinstance(result.exception, SystemExit):
    raise result.exception


OVERRIDES = b"""--gin.FILES='*.txt'
--gin.corpus.Corpus.seed=3
--gin.chunks.Chunks.chunk_len = 32
--gin.corpus.Corpus.sources=(@sources.TextFiles(), @sources.TextFiles(),)"""
INDEX, TOKENS = tokens()
INPUTS = (
  Input('a.jsonl', lines(DOCUMENTS), corpus(lambda p: JsonLines(str(p), id_key='id'))),
  Input('a.json', array(DOCUMENTS), corpus(lambda p: JsonLines(str(p)))),
  Input('a.jsonl.gz', gzip.compress(lines(DOCUMENTS)), corpus(lambda p: JsonLines(str(p)))),
  Input('b.jsonl.gz', lines(DOCUMENTS), corpus(lambda p: JsonLines(str(p))), gzip.compress),
  Input(
    'a.jsonl.zst', zstandard.compress(lines(DOCUMENTS)), corpus(lambda p: JsonLines(str(p)))
  ),
  Input('a.txt', '\n'.join(TEXTS).encode(), text_files),
  Input('a.txt.gz', gzip.compress(TEXTS[0].encode()), text_files),
  Input('a.parquet', parquet(), corpus(lambda p: Parquet(str(p)))),
  Input('b.parquet', parquet(is_dictionary=True), corpus(lambda p: Parquet(str(p)))),
  Input('a.arrow', arrow(pa.ipc.new_stream), corpus(lambda p: Arrow(str(p)))),
  Input('b.arrow', arrow(pa.ipc.new_file), corpus(lambda p: Arrow(str(p)))),
  Input('c.arrow', arrow(pa.ipc.new_stream, is_dictionary=True), corpus(lambda p: Arrow(str(p)))),
  Input('a.idx', INDEX, token_files),
  Input('a.bin', TOKENS, token_files),
  Input('questions.jsonl', lines(QUESTIONS), questions(JsonLinesQuestions)),
  Input('squad.json', array(SQUAD), questions(lambda p: QaFiles(p, 'squad'))),
  Input('squad.jsonl', lines([{'data': SQUAD}]), questions(lambda p: QaFiles(p, 'squad'))),
  Input('theirs.jsonl', lines(THEIRS), questions(lambda p: QaFiles(p, 'qa'))),
  Input('dialogues.jsonl', lines(SAID), questions(Dialogues)),
  Input('tasks.json', array(TASKS), questions(InstructionRows)),
  Input('prompts.jsonl', lines(PROMPTS), prompts),
  Input('run.gin', RUN.encode(), command_line),
  Input('options.txt', OVERRIDES, command_line),
)  # fmt: skip


def flip(content, rng):
  changed = bytearray(content)
  for _ in range(rng.choice([1, 1, 2, 8])):
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
  return bytes(changed)


def cut(content, rng):
  return content[: rng.randrange(len(content))]


def lose(content, rng):
  start, size = rng.randrange(len(content)), rng.choice([1, 4, 40])
  return content[:start] + content[start + size :]


def double(content, rng):
  start, size = rng.randrange(len(content)), rng.choice([1, 8, 200])
  return content[: start + size] + content[start:]


INSERTED = (
  b'\x00', b'\xff', b'\xed\xa0\xbd', b'\\ud83d', b'1e999', b'-', b'9' * 5000, b'[' * 100_000, b'"',
  b'{"a":' * 2000, b'\n', b'\r', b'NaN', b'\xef\xbb\xbf', b"include 'x'", b'%', b'@', b'\x7f' * 8,
  b'(', b'\xff\xff\xff\x7f', b"import os\n", b' = ', b'/',
)  # fmt: skip


def insert(content, rng):
  start = rng.randrange(len(content) + 1)
  stop = rng.choice([start, start + 1, start + 4])
  return content[:start] + rng.choice(INSERTED) + content[stop:]


VALUES = (
  None, True, False, 0, -1, 1.5, 10**400, float('nan'), float('inf'), '', ' ', 'x', '\ud83d',
  [], {}, [None], [[]], [{}], {'text': None}, {'text': ['x', 3]}, {'': ''}, 'x' * 3000, ['\udc00'],
  '\x00',
)  # fmt: skip


def retype(content, rng):
  """Deletes, doubles, renames or retypes a value somewhere inside of JSON; else flips."""
  try:
    whole = [json.loads(line) for line in content.decode().splitlines()]
  except ValueError:
    return flip(content, rng)
  places = [(box, key) for box, key in walk(whole) if box is not whole]
  box, key = rng.choice(places)
  action = rng.randrange(5)
  if action == 0:
    del box[key]
  elif action == 1:
    box[key] = [box[key]] * 2
  elif action == 2 and isinstance(box, dict):
    box[rng.choice(['answer', 'title', 'messages', 'passage', 'x\ud83d', '\n'])] = box.pop(key)
  elif action == 3:
    nested: Any = box[key]
    for _ in range(rng.choice([3, 300, 400])):
      nested = rng.choice([{'text': nested}, [nested]])
    box[key] = nested
  else:
    box[key] = rng.choice(VALUES)
  return '\n'.join(map(json.dumps, whole)).encode()


def walk(box):
  for key, value in list(box.items() if isinstance(box, dict) else enumerate(box)):
    yield box, key
    if isinstance(value, (dict, list)):
      yield from walk(value)


MUTATIONS = (flip, cut, lose, double, insert, retype, retype)


def check(number, folder):
  """One mutated input, decided by its number."""
  rng = random.Random(number)
  one = INPUTS[number % len(INPUTS)]
  content = one.content
  for _ in range(rng.choice([1, 1, 2])):
    content = rng.choice(MUTATIONS)(content, rng) or b' '
  path = folder / one.name
  path.write_bytes(one.packed(content))
  try:
    one.read(path, folder)
  except StageError as error:
    message = str(error)
    assert message and '\n' not in message, message  # stderr escapes half characters
  except OSError as error:
    assert error.strerror


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
  monkeypatch.setattr(notes.tqdm.tqdm, 'write', lambda *args, **kwargs: None)


@pytest.mark.parametrize('one', INPUTS, ids=lambda one: one.name)
def test_the_inputs_are_valid(one, tmp_path):
  path = tmp_path / one.name
  path.write_bytes(one.packed(one.content))
  counts = one.read(path, tmp_path)
  assert not isinstance(counts, dict) or not counts['problems']['counts']


def check_all(numbers, tmp_path):
  for number in numbers:
    folder = tmp_path / str(number)
    folder.mkdir()
    try:
      check(number, folder)
    except Exception as error:
      error.add_note(f'number {number}: {INPUTS[number % len(INPUTS)].name}')
      raise


@pytest.mark.parametrize('start', range(0, 440, 110))
def test_mutated_inputs_end_in_words(start, tmp_path):
  check_all(range(start, start + 110), tmp_path)


@pytest.mark.slow(minutes=6)
def test_ten_thousand_mutated_inputs_end_in_words(tmp_path):
  check_all(range(10_000), tmp_path)

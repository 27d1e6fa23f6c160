"""Files of prompts, and requests from anywhere: what is refused, what is answered, what is kept."""

import dataclasses
import fcntl
import json
import shutil
import typing

from click.testing import CliRunner
from flax import linen as nn
from flax import traverse_util
from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import numpy as np
import pytest

from instructretro_jax import main
from instructretro_jax.inference.answer import Request
from instructretro_jax.inference.checks import from_json
from instructretro_jax.inference.prompt_files import read_prompts, seed_of_line
from instructretro_jax.inference.sampler import Sampler
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.text import vocabulary
from instructretro_jax.train.checkpoint_writer import write_checkpoint
from instructretro_jax.train.lazy_params import LazyArray
from instructretro_jax.train.state import init_params
from instructretro_jax.web.exchange import PageRequest, page_request_of
from tests.inference.fixtures import RUN_CONFIG

GIVEN = settings(max_examples=150, derandomize=True, deadline=None)
TEMPLATE = Request(prompt=(0,), seed=3)


@pytest.fixture
def write(tmp_path):
  def write(*rows, name='prompts.jsonl'):
    path = tmp_path / name
    path.write_text('\n'.join(map(json.dumps, rows)))
    return path

  return write


def generate(arm, path, *more):
  given = ['generate', f'--checkpoint={arm}', f'--prompts={path}', *more]
  return CliRunner().invoke(main.main, given)


def rows_of(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


# what a line may say


def test_a_string_where_a_list_is_meant_is_one_text(write):
  whole = {'prompt': 'p', 'context': 'one two', 'stop': 'END', 'neighbours': 'three four'}
  listed = {name: [text] for name, text in whole.items()} | {'prompt': 'p'}
  for row in (whole, listed):
    (line,) = read_prompts(write(row), TEMPLATE, ['given'])
    assert line.context == ('one two',)
    assert (line.settings.stop, line.settings.neighbours) == (('END',), ('three four',))


def test_null_is_as_good_as_absent(write):
  row = dict.fromkeys(('context', 'id', 'seed', 'stop', 'gate', 'retrieval_step', 'max_new'))
  bare, null = read_prompts(write({'prompt': 'p'}, {'prompt': 'p'} | row), TEMPLATE, ['given'])
  assert null == dataclasses.replace(
    bare, number=2, settings=dataclasses.replace(bare.settings, seed=null.settings.seed)
  )
  assert bare.context == ('given',)


def test_separators_of_unicode_and_a_mark_at_the_start_are_text(tmp_path):
  path = tmp_path / 'prompts.jsonl'
  texts = ['a\u2028b', 'a\u2029b', 'a\x85b', 'é']
  lines = [json.dumps({'prompt': text}, ensure_ascii=False) for text in texts]
  path.write_bytes(b'\xef\xbb\xbf' + '\r\n'.join(lines).encode())
  assert [line.prompt for line in read_prompts(path, TEMPLATE)] == texts


@pytest.mark.parametrize(
  'line, message',
  [
    (b'{"prompt": "caf\xe9"}', 'byte 0xe9 at 15 is not UTF-8'),
    (b'{"prompt": "x\\ud83d"}', 'prompt: character 1 is half a character'),
    (b'{"prompt": "x", "context": ["x\\ud83d"]}', 'context: character 1 is half a character'),
    (b'{"prompt": "x", "stop": ["x\\ud83d"]}', 'stop: character 1 is half a character'),
    (b'{"prompt": "x", "id": "x\\ud83d"}', 'id: character 1 is half a character'),
    (b'{"prompt": "x", "id": true}', 'id=True is not a text or a whole number'),
    (b'{"prompt": "x", "id": [1]}', 'id=.1,. is not'),
    (b'{"prompt": "x", "context": 3}', 'context=3 is not a list of texts'),
    (b'{"prompt": "x", "context": [3]}', 'context=.3,. is not a list of texts'),
    (b'{"prompt": "x", "stop": [""]}', 'a stop text is empty'),
    (b'{"prompt": "x", "max_new": 5.0}', 'max_new=5.0 is not a whole number'),
    (b'{"prompt": "x", "max_new": true}', 'max_new=True is not a whole number'),
    (b'{"prompt": "x", "max_new": 99999999}', 'max_new=99999999 is at most'),
    (b'{"prompt": "x", "seed": -1}', 'seed=-1 from 0'),
    (b'{"prompt": "x", "seed": 4294967296}', 'seed=4294967296 from 0'),
    (b'{"prompt": "x", "temperature": NaN}', 'temperature=nan is not a finite number'),
    (b'{"prompt": "x", "gate": Infinity}', 'gate=inf is not a finite number'),
    (b'{"prompt": "x", "stop_at_repetition": 1}', 'stop_at_repetition=1 is not true or false'),
    (b'{"prompt": "x", "answer": 1}', "'answer'. is unknown; there are .*context.*id"),
    (b'{"prompt": ["x"]}', "no object with a text 'prompt'"),
    (b'[' * 100_000, 'nested too deep'),
  ],
)
def test_a_line_that_is_no_request_is_named(tmp_path, line, message):
  path = tmp_path / 'prompts.jsonl'
  path.write_bytes(b'{"prompt": "x"}\n\n' + line + b'\n')
  with pytest.raises(StageError, match=f'prompts.jsonl, line 3: .*{message}'):
    read_prompts(path, TEMPLATE)


def test_lines_draw_anew_and_a_seed_of_their_own_is_kept(write):
  rows = [{'prompt': 'p'}] * 4 + [{'prompt': 'p', 'seed': 7}] * 2
  seeds = [line.settings.seed for line in read_prompts(write(*rows), TEMPLATE)]
  assert seeds == [*(seed_of_line(3, n) for n in range(1, 5)), 7, 7] and len(set(seeds)) == 5
  again = [line.settings.seed for line in read_prompts(write(*rows), TEMPLATE)]
  other = [
    line.settings.seed for line in read_prompts(write(*rows), dataclasses.replace(TEMPLATE, seed=4))
  ]
  assert again == seeds and not set(other[:4]) & set(seeds)


# one check for all doors


VALUES = (
  st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=3)
  | st.sampled_from(['\ud83d', (), [], {}, ('',), ('\udc00',), (1, -1), (1.5,), [3], 10**400])
)  # fmt: skip


@GIVEN
@given(st.sampled_from([field.name for field in dataclasses.fields(Request)]), VALUES)
def test_a_request_is_what_its_annotations_say_or_is_refused_in_words(name, value):
  try:
    request = Request(**{'prompt': 'p', name: value})
  except ValueError as error:
    assert str(error).encode() and '\n' not in str(error)
    return
  hint = typing.get_type_hints(Request)[name]
  kinds = typing.get_args(hint) or (hint,)
  kinds = {typing.get_origin(kind) or kind for kind in kinds} - {str, Ellipsis}
  found = getattr(request, name)
  assert type(found) in kinds | {str, tuple} or (float in kinds and type(found) is int)
  json.dumps(dataclasses.asdict(request), allow_nan=False, ensure_ascii=False).encode()


@GIVEN
@given(st.dictionaries(st.sampled_from([*vars(PageRequest(text='x')), 'unknown']), VALUES))
def test_the_page_and_a_line_pass_the_same_check(content):
  for ask in (page_request_of, lambda row: Request(**{'prompt': 'p', **from_json(Request, row)})):
    try:
      ask(content)
    except ValueError as error:
      assert str(error).encode() and '\n' not in str(error)


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'prompt': ''}, 'the prompt is empty'),
    ({'prompt': (1, -2)}, 'the token -2'),
    ({'prompt': (1, True)}, 'is not a text or a list of tokens'),
    ({'stop': 'END'}, "stop='END' is not a list of texts"),
    ({'neighbours': 'text'}, "neighbours='text' is not a list of texts"),
    ({'temperature': float('inf')}, 'temperature=inf is not a finite number'),
    ({'temperature': 10**400}, 'temperature=1000.*is not a finite number'),
    ({'penalty': float('nan')}, 'penalty=nan is not a finite number'),
    ({'retrieval_step': 0}, 'retrieval_step=0 is 1 or more'),
  ],
)
def test_python_is_told_the_same(fields, message):
  with pytest.raises(ValueError, match=message):
    Request(**{'prompt': 'p'} | fields)


@pytest.mark.parametrize(
  'option, message',
  [
    ('--temperature=nan', 'temperature=nan is not a finite number'),
    ('--gate=inf', 'gate=inf is not a finite number'),
    ('--seed=-1', 'seed=-1 from 0'),
    ('--seed=4294967296', 'seed=4294967296 from 0'),
    ('--batch_size=0', 'batch_size=0: decode at least one row'),
    ('--stop=', 'a stop text is empty'),
    ('--stop=\udce9', 'stop: character 0 is half a character'),
  ],
)
def test_options_are_refused_before_anything_is_loaded(tmp_path, write, option, message):
  for asked in ('--prompt=ape', f'--prompts={write({"prompt": "p"})}'):
    result = CliRunner().invoke(main.main, ['generate', f'--checkpoint={tmp_path}', asked, option])
    assert isinstance(result.exception, StageError)
    assert message in str(result.exception)


def test_a_text_to_score_passes_the_same_check(tmp_path):
  for text, message in (('', 'the prompt is empty'), ('\udce9', 'is half a character')):
    result = CliRunner().invoke(main.main, ['score', f'--checkpoint={tmp_path}', f'--text={text}'])
    assert isinstance(result.exception, StageError) and message in str(result.exception)


# what is kept


ROWS = ({'prompt': 'ape bee ', 'id': 'a-1'}, {'prompt': 'cat ', 'id': 2}, {'prompt': 'dog '})


@pytest.fixture
def arm(built_run_with_arm):
  return built_run_with_arm / 'imported'


def test_ids_come_back_and_the_folder_is_made(arm, write, tmp_path):
  out = tmp_path / 'new' / 'folder' / 'answers.jsonl'
  assert generate(arm, write(*ROWS), f'--out={out}', '--max_new=4').exit_code == 0
  found = rows_of(out)
  assert [row.get('id') for row in found] == ['a-1', 2, None] and 'id' not in found[2]
  assert [row['prompt'] for row in found] == [row['prompt'] for row in ROWS]
  here = generate(arm, write(*ROWS), '--max_new=4')
  assert [json.loads(line) for line in here.stdout.splitlines()] == found


def test_samples_of_one_prompt_differ(arm, write, tmp_path):
  rows = [{'prompt': 'ape '}] * 6 + [{'prompt': 'ape ', 'seed': 5}] * 2
  result = generate(arm, write(*rows), '--max_new=12', '--temperature=2')
  texts = [json.loads(line)['text'] for line in result.stdout.splitlines()]
  assert len(set(texts[:6])) == 6 and texts[6] == texts[7]


class Killed(BaseException):
  pass


def test_a_rerun_goes_on_behind_the_last_whole_line(arm, write, tmp_path, monkeypatch):
  path, out, whole = write(*ROWS), tmp_path / 'out.jsonl', tmp_path / 'whole.jsonl'
  short = ['--max_new=4', '--batch_size=1', '--temperature=1']
  generate(arm, path, f'--out={whole}', *short)
  each = Sampler.generate_each

  def killed(self, requests, show_progress=False):
    for n, found in enumerate(each(self, requests, show_progress)):
      if n == 2:
        raise Killed
      yield found

  with monkeypatch.context() as patch:
    patch.setattr(Sampler, 'generate_each', killed)
    with pytest.raises(Killed):
      CliRunner().invoke(
        main.main,
        ['generate', f'--checkpoint={arm}', f'--prompts={path}', f'--out={out}', *short],
        catch_exceptions=False,
      )
  assert out.read_bytes() == b''.join(whole.read_bytes().splitlines(keepends=True)[:2])
  out.write_bytes(out.read_bytes()[:-9])  # a line that a kill cut short
  asked = []
  asking = lambda self, some, **bar: asked.extend(some) or each(self, some, **bar)
  monkeypatch.setattr(Sampler, 'generate_each', asking)
  assert generate(arm, path, f'--out={out}', *short).exit_code == 0
  assert out.read_bytes() == whole.read_bytes() and [r.prompt for r in asked] == ['cat ', 'dog ']
  monkeypatch.setattr(Sampler, '__init__', None)  # nothing is left to do, and nothing is loaded
  assert generate(arm, path, f'--out={out}', *short).exit_code == 0


def test_a_file_of_other_answers_is_left_alone(arm, write, tmp_path):
  out = tmp_path / 'out.jsonl'
  assert generate(arm, write(*ROWS), f'--out={out}', '--max_new=4').exit_code == 0
  before = out.read_bytes()
  others = [
    (ROWS, '--max_new=5'),
    (ROWS, '--chat'),
    (ROWS, '--seed=1'),
    (ROWS[:2], '--max_new=4'),
    ((ROWS[0], ROWS[2]), '--max_new=4'),
  ]
  for rows, option in others:
    result = generate(arm, write(*rows, name='other.jsonl'), f'--out={out}', '--max_new=4', option)
    assert 'choose another --out' in str(result.exception), option
  (tmp_path / 'notes.txt').write_text('notes\n')
  result = generate(arm, write(*ROWS), f'--out={tmp_path / "notes.txt"}')
  assert 'notes.txt, line 1: no line of answers' in str(result.exception)
  with out.open('ab') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    result = generate(arm, write(*ROWS), f'--out={out}', '--max_new=4')
    assert 'is being written by another run' in str(result.exception)
  assert out.read_bytes() == before


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_loaded(
  arm, write, tmp_path, monkeypatch
):
  monkeypatch.setattr(Sampler, '__init__', None)
  (tmp_path / 'file').touch()
  for out, message in (
    (tmp_path, 'is a folder: name a file in --out'),
    (tmp_path / 'file' / 'out.jsonl', '/file: File exists'),
    ('/proc/no/out.jsonl', '/proc/no: '),
  ):
    result = generate(arm, write(*ROWS), f'--out={out}')
    assert isinstance(result.exception, StageError) and message in str(result.exception)


def test_a_full_disk_is_one_line(arm, write):
  result = generate(arm, write(*ROWS), '--out=/dev/full', '--max_new=2')
  assert isinstance(result.exception, StageError)
  assert str(result.exception).startswith('/dev/full: No space left on device: make room')


@pytest.fixture
def learned(arm, tmp_path):
  """A decoder with 32 learned positions, with the vocabulary of the other."""
  decoder = dataclasses.replace(RUN_CONFIG.decoder, positions='learned', max_len=32)
  config = dataclasses.replace(RUN_CONFIG, decoder=decoder)
  params = nn.unbox(jax.jit(lambda: init_params(config, 0, False))())
  flat = traverse_util.flatten_dict(jax.tree.map(np.asarray, params), sep='/')
  lazy = {path: LazyArray(x.shape, x.dtype, lambda x=x: x) for path, x in flat.items()}
  record = {'vocabulary': vocabulary.fingerprint(vocabulary.load(arm))}
  write_checkpoint(tmp_path / 'learned', config, lazy, record)
  shutil.copy(arm / vocabulary.SENTENCEPIECE_FILE, tmp_path / 'learned')
  return tmp_path / 'learned'


def test_a_prompt_without_room_gets_an_error_and_the_others_their_answers(learned, write, tmp_path):
  rows = [ROWS[0], {'prompt': 'x' * 40, 'id': 'long'}, {'prompt': 'cat ', 'gate': 1}, ROWS[2]]
  out = tmp_path / 'out.jsonl'
  for _ in range(2):  # also where all is there already
    result = generate(learned, write(*rows), f'--out={out}', '--max_new=4')
    assert '2 of the 4 prompts of' in str(result.exception)
  found = rows_of(out)
  assert ['error' in row for row in found] == [False, True, True, False]
  assert (found[1]['id'], found[1]['prompt']) == ('long', 'x' * 40)
  assert 'do not fit the 32 learned positions' in found[1]['error']
  assert 'there is no encoder here' in found[2]['error']


def test_a_line_opens_the_gate_by_itself(built_run_with_arm, write):
  arm = built_run_with_arm / 'retro_fit'
  row = {'prompt': 'ape bee cat ', 'context': 'kite lynx jay '}
  result = generate(arm, write(row, row | {'gate': 1}), '--max_new=20')
  closed, opened = map(json.loads, result.stdout.splitlines())
  assert closed['prompt'] == opened['prompt'] and closed['text'] != opened['text']

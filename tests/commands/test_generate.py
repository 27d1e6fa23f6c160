"""`generate` and `score` as a user types them."""

import json
import re
import shlex

from click.testing import CliRunner
import numpy as np
import pytest

from instructretro_jax import main
from instructretro_jax.inference import score as scoring
from instructretro_jax.inference import session
from instructretro_jax.inference.answer import Request
from instructretro_jax.inference.prompt_files import read_prompts
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.questions.prompts import PLAIN, format_of
from instructretro_jax.text import vocabulary
from tests.inference.fixtures import RUN_CONFIG
from tests.model.test_retro import logits


def run(*arguments, **kwargs):
  return CliRunner().invoke(main.main, arguments, catch_exceptions=False, **kwargs)


@pytest.fixture(autouse=True)
def no_cache_outside(tmp_path, monkeypatch):
  monkeypatch.setenv('INSTRUCTRETRO_CACHE', str(tmp_path / 'cache'))


def examples(command):
  text = main.main.commands[command].help.replace('\\\n', '')
  return re.findall(r'^\s*instructretro (.+)$', text, re.M)


def test_examples_of_the_help_run(run_with_arm, tmp_path):
  prompts = tmp_path / 'prompts.jsonl'
  prompts.write_text('{"prompt": "ape bee"}\n\n{"prompt": "cat", "seed": 4, "max_new": 2}\n')
  lines = examples('generate') + examples('score')
  assert len(lines) == 6
  for line in lines:
    line = line.replace('runs/quickstart', str(run_with_arm)).replace('prompts.jsonl', str(prompts))
    line = line.replace('runs/smollm2_135m', str(run_with_arm / 'imported'))
    arguments = [a for a in shlex.split(line) if not a.startswith('--max_new')]
    short = ['--max_new=9'] if arguments[0] == 'generate' else []
    result = run(*arguments, *short, input='Who?\n\n')
    assert result.exit_code == 0 and result.stdout.strip(), line


def test_a_file_of_prompts_gives_a_line_each(run_with_arm, tmp_path):
  path, out = tmp_path / 'prompts.jsonl', tmp_path / 'out' / 'answers.jsonl'
  rows = [
    {'prompt': 'ape bee cat dog eel fox gnu hen ', 'context': ['kite lynx ', 'jay ']},
    {'prompt': 'ape ', 'temperature': 1.0, 'seed': 5, 'stop': ['e'], 'gate': 0},
  ]
  path.write_text('\n'.join(map(json.dumps, rows)))
  out.parent.mkdir()
  root, arm = str(run_with_arm), str(run_with_arm / 'retro_fit')
  given = ['generate', f'--checkpoint={arm}', f'--prompts={path}', '--max_new=20']
  assert run(*given, f'--index={root}', f'--out={out}').exit_code == 0
  first, second = map(json.loads, out.read_text().splitlines())
  assert first['prompt'] == 'kite lynx \n\njay \n\n' + rows[0]['prompt']
  assert [found['after_tokens'] % 8 for found in first['retrieved']] == [
    first['retrieved'][0]['after_tokens'] % 8
  ] * len(first['retrieved'])
  assert {'chunk', 'document', 'score', 'text'} == first['retrieved'][0]['chunks'][0].keys()
  assert 'retrieved' not in second and 'e' not in second['text']
  # without an index, the encoder reads the passages; a closed gate is another answer
  passages = ['--context=kite lynx jay ', '--gate=1']
  opened = run(*given[:2], '--prompt=ape ', '--max_new=20', *passages)
  closed = run(*given[:2], '--prompt=ape ', '--max_new=20', passages[0])
  assert opened.exit_code == closed.exit_code == 0 and opened.stdout != closed.stdout


@pytest.mark.parametrize(
  'line, message',
  [
    ('{"prompt": 3}', "line 1: no object with a text 'prompt'"),
    ('{"prompt": "x", "sed": 3}', "line 1: .'sed'. is unknown"),
    ('{"prompt": "x", "max_new": 0}', 'line 1: max_new=0'),
    ('{"prompt"', 'line 1: Expecting'),
    ('\n', 'has no prompt'),
  ],
)
def test_wrong_lines_are_named(tmp_path, line, message):
  path = tmp_path / 'prompts.jsonl'
  path.write_text(line)
  with pytest.raises(StageError, match=message):
    read_prompts(path, Request(prompt=(0,)))


def test_mistakes_are_one_line(run_with_arm):
  imported, arm = (f'--checkpoint={run_with_arm / name}' for name in ('imported', 'retro_fit'))
  with pytest.raises(StageError, match='has no encoder'):
    run('generate', imported, '--prompt=ape', '--gate=1')
  with pytest.raises(StageError, match='nothing to read'):
    run('generate', arm, '--prompt=ape', '--gate=1')
  with pytest.raises(StageError, match='top_p=2.0'):
    run('generate', arm, '--prompt=ape', '--top_p=2')
  with pytest.raises(StageError, match='the first has no probability'):
    run('score', arm, '--text=a')
  assert run('generate', arm, '--prompt=a', f'--prompts={__file__}').exit_code == 2


def test_dialogues_remember_and_forget_the_oldest(run_with_arm, monkeypatch):
  sampler, _ = session.open_sampler(run_with_arm / 'imported', None, None)
  asked = []
  stream = sampler.stream
  monkeypatch.setattr(sampler, 'stream', lambda r: asked.append(r.prompt) or stream(r))
  dialogue = session.Dialogue(sampler, Request(prompt=(0,), max_new=4), ['lynx'])
  answers = [''.join(dialogue.ask(f'ape {n}?')) for n in range(3)]
  assert asked[0] == f'System: {PLAIN.default_system}\n\nlynx\n\nUser: ape 0?\n\nAssistant:'
  turn = lambda n: f' {answers[n].strip()}\n\nUser: ape {n + 1}?\n\nAssistant:'
  assert asked[1] == asked[0] + turn(0)
  # the model has 200 positions, and a letter that is no word is a token
  assert len(sampler.tokenize(asked[1])) <= 196 < len(sampler.tokenize(asked[1] + turn(1)))
  assert asked[2] == asked[0].replace('ape 0', 'ape 1') + turn(1)
  with pytest.raises(ValueError, match='and there is room for 196'):
    list(dialogue.ask('a' * 200))


def test_the_format_is_that_of_training(run_with_arm):
  assert format_of(vocabulary.load(run_with_arm / 'vocabulary')) is PLAIN


def test_a_gate_without_an_index_is_said_to_stay_closed(run_with_arm):
  arm = [f'--checkpoint={run_with_arm / "retro_fit"}', '--text=ape bee cat']
  said = 'the gate stays closed: without --index there are no neighbours to read'
  opened = CliRunner().invoke(main.main, ['score', *arm, '--gate=1', '--json'])
  assert opened.exit_code == 0 and opened.stderr.splitlines() == [said]
  plain = CliRunner().invoke(main.main, ['score', *arm, '--json'])
  closed = CliRunner().invoke(main.main, ['score', *arm, '--json', '--gate=0'])
  assert plain.stderr == closed.stderr == '' and plain.stdout == closed.stdout == opened.stdout


def test_scores_are_those_of_the_full_forward(run_with_arm):
  arm = run_with_arm / 'retro_fit'
  text = 'ape bee cat dog eel fox gnu hen ibis é jay kite '
  result = run(
    'score', f'--checkpoint={arm}', f'--index={run_with_arm}', f'--text={text}', '--json'
  )
  found = json.loads(result.stdout)
  sampler, gate = session.open_sampler(arm, run_with_arm, None)
  assert gate == 1
  tokens = np.array([sampler.tokenize(text)])
  L = tokens.shape[1]
  assert ''.join(found['pieces']) == text and len(found['pieces']) == L and 16 > L > 8
  tokens = np.pad(tokens, ((0, 0), (0, 16 - L)))
  chunks = [sampler.vocab.decode(tokens[0, n : min(n + 8, L)].tolist()) for n in (0, 8)]
  neighbours, mask = np.zeros((1, 2, 2, 16), int), np.zeros((1, 2, 2, 16), bool)
  for n, members in enumerate(sampler.retriever.find(chunks, 2)):
    assert [m.text for m in members] == [m['text'] for m in found['neighbours'][n]]
    for k, member in enumerate(members):
      neighbours[0, n, k, : len(member.tokens)] = member.tokens[:16]
      mask[0, n, k, : len(member.tokens)] = True
  for name, gate in (('closed', 0), ('opened', 1.0)):
    inputs = (tokens, np.ones_like(tokens), neighbours, mask)
    scores = logits(RUN_CONFIG, sampler.params, *inputs, gate=gate)[0].astype(np.float64)
    nats = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    assert found[name][0] is None
    expected = nats[np.arange(L - 1), tokens[0, 1:L]]
    np.testing.assert_allclose(found[name][1:], expected, atol=1e-4)
  assert found['closed'][1:8] == pytest.approx(found['opened'][1:8], abs=1e-6)
  assert found['closed'][9:] != pytest.approx(found['opened'][9:], abs=1e-3)
  assert json.loads(json.dumps(scoring.score(sampler, text).to_json())) == found

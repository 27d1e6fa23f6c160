"""Checkpoints in the lm-evaluation-harness against `score`, `generate` and our own evaluation."""

import json
from pathlib import Path
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from instructretro_jax.evaluate.answers import likeliest
from instructretro_jax.evaluate.readers import CheckpointReader, Limits, Query
from instructretro_jax.inference import score as scoring
from instructretro_jax.inference.answer import Request
from instructretro_jax.pipeline.manifest import StageError
from instructretro_jax.questions.prompts import Prompter
from instructretro_jax.questions.questions import Question
from instructretro_jax.text import vocabulary

pytestmark = pytest.mark.slow(minutes=0.2)
ROOT = Path(__file__).resolve().parents[2]
TEXT = 'ape bee cat dog eel fox gnu hen ibis jay kite lynx ape cat eel gnu ibis kite bee dog '
PAIRS = [
  (TEXT[:40], TEXT[40:60]),
  (TEXT[:40], 'jay '),
  ('bee ', 'ape ape ape '),
  (TEXT[:-1], ' lynx '),
  ('dog', 'e'),
]


@pytest.fixture
def harness():
  return pytest.importorskip('lm_eval', reason='comes with the extra lm_eval')


@pytest.fixture
def open_model(harness, run_with_arm):
  """A function of arguments beside the checkpoint -> the model, as the harness makes it."""
  from instructretro_jax.evaluate.lm_eval_model import InstructRetroLM

  def open_(arm='retro_fit', **given):
    given = {name: str(run_with_arm) if x is ... else x for name, x in given.items()}
    beside = {'batch_size': '3', 'max_batch_size': None, 'device': 'cuda:0'}
    return InstructRetroLM.create_from_arg_obj(
      {'checkpoint': str(run_with_arm / arm), **given}, beside
    )

  return open_


def asked(kind, arguments):
  from lm_eval.api.instance import Instance

  return [Instance(kind, {}, given, n) for n, given in enumerate(arguments)]


def nats_of(found, is_open):
  return found.opened if is_open else found.closed


@pytest.mark.parametrize('gate, is_open', [('off', False), ('on', True), (0.5, True)])
def test_loglikelihood_is_the_sum_of_scores(open_model, gate, is_open):
  model = open_model(gate=gate, index=...)
  found = model.loglikelihood(asked('loglikelihood', PAIRS))
  alone = [model.loglikelihood(asked('loglikelihood', [pair]))[0] for pair in PAIRS]
  scale = 1.0 if gate == 'on' else gate
  for (nats, _), (again, _), (context, continuation) in zip(found, alone, PAIRS):
    num_context = len(model.tok_encode(context.rstrip()))
    scored = scoring.score(model.sampler, context + continuation, *([scale] if is_open else []))
    np.testing.assert_allclose(nats, sum(nats_of(scored, is_open)[num_context:]), rtol=1e-5)
    np.testing.assert_allclose(nats, again, rtol=1e-5)


def test_greedy_is_what_generate_writes(open_model):
  model = open_model(gate='off')
  prompts = ['ape bee cat ', TEXT]
  requests = [Request(prompt=prompt, max_new=5) for prompt in prompts]
  written = [answer.tokens for answer in model.sampler.generate(requests)]
  texts = [(None, model.tok_encode(p), list(w)) for p, w in zip(prompts, written)]
  assert all(is_greedy for _, is_greedy in model._loglikelihood_tokens(texts))
  other = [(_, p, [*w[:-1], (w[-1] + 1) % 340]) for _, p, w in texts]
  assert not any(is_greedy for _, is_greedy in model._loglikelihood_tokens(other))


def test_texts_that_do_not_fit_lose_their_beginning(open_model, monkeypatch):
  model = open_model(gate='on', index=..., max_length=16)
  tokens = model.tok_encode(TEXT)
  num_context = len(model.tok_encode(TEXT[:-13].rstrip()))
  ((nats, _),) = model.loglikelihood(asked('loglikelihood', [(TEXT[:-13], TEXT[-13:])]))
  scored = scoring.score(model.sampler, tokens[-17:])  # of which the last is only predicted
  assert len(tokens) > 17 and num_context < len(tokens) - 1
  np.testing.assert_allclose(nats, sum(scored.opened[num_context - len(tokens) :]), rtol=1e-5)
  with pytest.raises(StageError, match='the continuation has 21 tokens, and may have 1 to 16'):
    model.loglikelihood(asked('loglikelihood', [('ape', TEXT[3:])]))
  assert open_model(gate='off').max_length == 200  # of its configuration
  lm_eval_model = sys.modules[type(model).__module__]
  monkeypatch.setattr(lm_eval_model, 'longest_scored', lambda sampler: 200)
  with pytest.raises(StageError, match='max_length=208.*room for 200'):
    open_model(max_length=208)


def test_without_a_context_the_end_token_stands_there(open_model):
  model = open_model(gate='off')
  found = model.loglikelihood(asked('loglikelihood', [('', TEXT)]))
  (rolling,) = model.loglikelihood_rolling(asked('loglikelihood_rolling', [(TEXT,)]))
  scored = scoring.score(model.sampler, [model.eot_token_id, *model.tok_encode(TEXT)])
  expected = sum(scored.closed[1:])
  np.testing.assert_allclose([found[0][0], rolling], expected, rtol=1e-5)


def test_rolling_takes_each_token_once_with_all_the_context_there_is(open_model):
  model = open_model(gate='on', index=..., max_length=8)
  tokens = [model.eot_token_id, *model.tok_encode(TEXT)]
  T = len(tokens) - 1
  windows = [(0, 8), (8, 16), (T - 8, T)]  # of inputs; the last predicts what is left
  news = [8, 8, T - 16]
  assert 16 < T < 24
  expected = sum(
    sum(scoring.score(model.sampler, tokens[start : stop + 1]).opened[-new:])
    for (start, stop), new in zip(windows, news)
  )
  found = model.loglikelihood_rolling(asked('loglikelihood_rolling', [('',), (TEXT,)]))
  np.testing.assert_allclose(found, [0, expected], rtol=1e-5)


@pytest.mark.parametrize('gate', ['off', 'on'])
def test_generate_until_is_generate(open_model, gate):
  model = open_model(gate=gate, index=...)
  contexts = [TEXT, 'ape ', TEXT[:33], 'bee ']
  stops = ['e', 'never in it']
  given = {'until': stops, 'max_gen_toks': 24, 'do_sample': False, 'temperature': 0.7}
  found = model.generate_until(asked('generate_until', [(text, given) for text in contexts]))
  requests = [
    Request(prompt=text, max_new=24, stop=tuple(stops), gate=model.gate) for text in contexts
  ]
  assert found == [answer.text for answer in model.sampler.generate(requests)]
  assert not any('e' in text for text in found)
  free = model.generate_until(asked('generate_until', [('ape ', {'max_gen_toks': 24})]))
  assert len(free[0]) > len(found[1]) or 'e' not in free[0]


def test_generation_fits_the_model_and_draws_anew(open_model):
  model = open_model(gate='off', max_length=40)
  long = TEXT * 3
  (found,) = model.generate_until(asked('generate_until', [(long, {'max_gen_toks': 8})]))
  request = Request(prompt=tuple(model.tok_encode(long)[-32:]), max_new=8)
  assert found == model.sampler.generate([request])[0].text
  drawn = {'max_gen_toks': 8, 'do_sample': True, 'temperature': 2.0}
  both = model.generate_until(asked('generate_until', [(long, drawn)] * 2))
  assert both[0] != both[1]
  assert both == model.generate_until(asked('generate_until', [(long, drawn)] * 2))
  for arguments, message in (
    ({'max_gen_toks': 40}, 'max_gen_toks=40 leaves no room'),
    ({'num_beams': 3}, "'num_beams'. is unknown"),
    ({'max_gen_toks': 4, 'top_p': 2}, 'top_p=2'),
  ):
    with pytest.raises(StageError, match=message):
      model.generate_until(asked('generate_until', [('ape ', arguments)]))


def test_random_neighbours_are_others_and_the_same_each_time(open_model):
  nats = {
    gate: model.loglikelihood(asked('loglikelihood', PAIRS[:1]))[0][0]
    for gate in ('off', 'on', 'random')
    for model in [open_model(gate=gate, index=...)]
  }
  assert len({round(x, 4) for x in nats.values()}) == 3
  again = open_model(gate='random', index=...).loglikelihood(asked('loglikelihood', PAIRS[:1]))
  assert again[0][0] == nats['random']


@pytest.mark.parametrize(
  'given, message',
  [
    ({'chekpoint': 'x', 'pretrained': 'y'}, 'chekpoint.*pretrained.*unknown; there are'),
    ({'gate': 'open'}, 'gate=open is no number and none of on, off, random'),
    ({'gate': 'on'}, 'gate=on, but no neighbours to read: give index=RUN'),
    ({'gate': True}, 'gate=True is not a finite number or a text'),
    ({'checkpoint': None}, 'give checkpoint=FOLDER'),
    ({'tensor': 'two'}, 'tensor=.two. is not a whole number'),
    ({'batch_size': 'auto'}, 'batch_size=.auto. is not a whole number'),
    ({'batch_size': '0'}, 'batch_size=0'),
    ({'max_length': 0}, 'max_length=0 is 1 or more'),
  ],
)
def test_wrong_arguments_are_one_line(harness, given, message):
  from instructretro_jax.evaluate.lm_eval_model import parse_arguments

  with pytest.raises(StageError, match=message) as error:
    parse_arguments({'checkpoint': 'folder', 'device': 'cuda:0', **given})
  assert '\n' not in str(error.value)


def test_an_arm_without_encoder_has_no_open_gate(open_model):
  with pytest.raises(StageError, match='has no encoder: its gate stays closed'):
    open_model(arm='imported', index=..., gate='on')


QUESTIONS = [
  Question(f'q{n}', text, (), ('yes',), 'own', style='boolean', system='')
  for n, text in enumerate(re.findall('(?:[a-z]+ ){3}', TEXT + TEXT[4:] + TEXT[8:]))
]
TASK = """
task: local_choices
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
  cache_dir: {cache}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def write_task(folder, vocab):
  """A task of the harness with the prompts of `QUESTIONS`; every other one is answered by no."""
  prompter = Prompter(vocab)
  prompts = [prompter.prompt(question, 150, ()).tokens for question in QUESTIONS]
  answers = [
    [prompter.answer(question, text, with_end=False) for text in ('yes', 'no')]
    for question in QUESTIONS
  ]
  rows = []
  for n, (prompt, of_prompt) in enumerate(zip(prompts, answers)):
    text, whole = vocab.decode(prompt), [vocab.decode(prompt + answer) for answer in of_prompt]
    assert all(vocab.encode(x) == prompt + answer for x, answer in zip(whole, of_prompt))
    rows.append({'prompt': text, 'choices': [x[len(text) :] for x in whole], 'gold': n % 2})
  folder.mkdir()
  (folder / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  task = TASK.format(rows=folder / 'rows.jsonl', cache=folder / 'cache')
  (folder / 'local_choices.yaml').write_text(task)


def test_a_multiple_choice_task_has_our_own_accuracy(harness, run_with_arm, tmp_path):
  arm = run_with_arm / 'retro_fit'
  write_task(tmp_path / 'tasks', vocabulary.load(run_with_arm / 'vocabulary'))
  limits = Limits(prompt_len=150, num_new=6, batch_size=4)
  reader = CheckpointReader(arm, limits, with_encoder=False)
  choices = reader.choices([Query(question=question) for question in QUESTIONS])
  chosen = [likeliest(nats, ('yes', 'no')) for nats in choices]
  own = np.mean([answer == ('yes', 'no')[n % 2] for n, answer in enumerate(chosen)])
  assert 0 < own < 1
  from lm_eval.tasks import TaskManager

  import instructretro_jax.evaluate.lm_eval_model  # noqa: F401 (registers the model)

  found = harness.simple_evaluate(
    model='instructretro',
    model_args=f'checkpoint={arm},gate=off',
    tasks=['local_choices'],
    batch_size=4,
    task_manager=TaskManager(include_path=str(tmp_path / 'tasks'), include_defaults=False),
  )
  assert found['results']['local_choices']['acc,none'] == own
  samples = sorted(found['samples']['local_choices'], key=lambda sample: sample['doc_id'])
  theirs = [[nats for ((nats, _),) in sample['resps']] for sample in samples]
  np.testing.assert_allclose(theirs, choices, rtol=1e-5)


@pytest.mark.slow(minutes=2)
def test_the_command_of_the_page_runs(harness, run_with_arm, tmp_path):
  write_task(tmp_path / 'tasks', vocabulary.load(run_with_arm / 'vocabulary'))
  page = (ROOT / 'docs' / 'evaluation.md').read_text()
  (line,) = re.findall(r'^instructretro (lm_eval .+)$', page, re.M)
  line = line.replace('runs/quickstart', str(run_with_arm)).replace('arc_easy', 'local_choices')
  command = [sys.executable, '-m', 'instructretro_jax', *shlex.split(line)]
  command.append(f'--include_path={tmp_path / "tasks"}')
  run = lambda command: subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
  result = run(command)
  assert result.returncode == 0, result.stderr
  assert re.search(r'\|local_choices\s*\|.*\|acc\s*\|', result.stdout), result.stdout
  wrong = run([part.replace('gate=on', 'gat=on') for part in command])
  assert wrong.returncode == 1
  last = wrong.stderr.splitlines()[-1]
  assert last.startswith("error: model_args: ['gat'] is unknown; there are ['batch_size'"), last

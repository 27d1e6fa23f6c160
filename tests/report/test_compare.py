"""Runs side by side."""

import json
from pathlib import Path

from click.testing import CliRunner
import pytest

from instructretro_jax import main
from instructretro_jax.pipeline import manifest
from instructretro_jax.report import compare
from tests.report import synthetic


def write_run(root, rows, arms=('gpt_fit', 'retro_fit')):
  plan = manifest.Plan('Perplexity', {'arms': list(arms)}, {})
  folder = root / 'perplexity'
  manifest.write_text(folder / 'results.json', json.dumps(rows))
  manifest.commit(folder, plan, {}, frozenset())
  return root


@pytest.fixture
def roots(tmp_path):
  own = (20.0, 22.0, 24.0)
  return [
    write_run(tmp_path / str(seed), synthetic.perplexity_rows(value))
    for seed, value in enumerate(own)
  ]


def test_mean_spread_and_gain_of_each_run(roots):
  found = compare.compare(roots)
  row = next(
    r
    for r in found['perplexity']
    if (r['arm'], r['neighbours'], r['category']) == ('retro_fit', 'own', 'all')
  )
  assert row['values'] == [20, 22, 24] and row['mean'] == 22 and row['sd'] == 2
  gain = next(r for r in found['gains'] if r['category'] == 'all')
  assert gain['values'] == [round(100 * (1 - v / 31.4159), 4) for v in (20, 22, 24)]
  assert compare.compare(roots[:1])['perplexity'][0]['sd'] is None


def test_runs_that_do_not_compare_are_named(roots, tmp_path):
  other = write_run(tmp_path / 'other', synthetic.perplexity_rows(), arms=('gpt',))
  with pytest.raises(manifest.StageError, match='perplexity.arms is ..gpt.., not ..gpt_fit'):
    compare.compare([*roots, other])
  short = write_run(tmp_path / 'short', synthetic.perplexity_rows()[1:])
  with pytest.raises(manifest.StageError, match='has the rows'):
    compare.compare([*roots, short])


def write_arm(root, **arguments):
  plan = manifest.Plan('Train', {'num_steps': 9, 'optimizer': {'peak': 0.1}} | arguments, {})
  (root / 'gpt_fit').mkdir()
  manifest.commit(root / 'gpt_fit', plan, {}, frozenset())
  evaluated = manifest.read_manifest(root / 'perplexity')
  inputs = {'gpt_fit': manifest.read_manifest(root / 'gpt_fit').fingerprint, 'file /a.json': 'f'}
  plan = manifest.Plan('Perplexity', evaluated.plan.arguments | {'seed': 3}, inputs)
  manifest.commit(root / 'perplexity', plan, {}, frozenset())


def test_runs_that_were_trained_in_another_way_do_not_compare(roots):
  write_arm(roots[0], seed=0, data_seed=0)
  write_arm(roots[1], seed=1, data_seed=1)
  assert compare.compare(roots)['runs'] == ['0', '1', '2']  # the third has the figures alone
  write_arm(roots[2], seed=2, data_seed=2, optimizer={'peak': 0.2}, num_steps=8)
  with pytest.raises(manifest.StageError) as caught:
    compare.compare(roots)
  assert str(caught.value) == (
    f'{roots[2]} was made in another way than {roots[0]}: gpt_fit.num_steps is 8, not 9; '
    'gpt_fit.optimizer.peak is 0.2, not 0.1; compare runs of one experiment, which differ in their '
    'seeds alone'
  )


def test_runs_are_named_by_what_tells_them_apart(tmp_path, monkeypatch):
  both = [write_run(tmp_path / n / 'long', synthetic.perplexity_rows()) for n in 'ab']
  assert compare.compare(both)['runs'] == ['a/long', 'b/long']
  monkeypatch.chdir(both[0])
  assert compare.compare(['.' / both[0], *both[1:]])['runs'] == ['a/long', 'b/long']
  with pytest.raises(manifest.StageError, match='is given twice'):
    compare.compare([Path(), *both])


def test_command_prints_tables_and_writes_numbers(roots, tmp_path):
  target = tmp_path / 'found.json'
  arguments = ['compare', *map(str, roots), f'--json={target}']
  result = CliRunner().invoke(main.main, arguments)
  assert result.exit_code == 0, result.output
  assert 'mean of 3 runs' in result.output and '22.00' in result.output
  assert json.loads(target.read_text()) == compare.compare(roots)

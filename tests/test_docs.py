"""Commands that pages show: every one exists, with its options, and every experiment configures."""

from pathlib import Path
import re
import shlex

from click.testing import CliRunner
import pytest

from instructretro_jax import main

ROOT = Path(__file__).parent.parent
MODEL = ROOT / 'tests' / 'golden' / 'hf' / 'llama'
FOLDERS = ('experiments', 'docs')
PAGES = [
  ROOT / 'README.md', *(p for name in FOLDERS for p in sorted((ROOT / name).rglob('*.md')))
]  # fmt: skip
COMMANDS = sorted(
  {
    command.strip()
    for page in PAGES
    for command in re.findall(r'(?:^|`)(instructretro [a-z_]+ [^`\n]+)', page.read_text(), re.M)
  }
)


def test_pages_show_commands():
  assert len(COMMANDS) > 8


@pytest.mark.parametrize('line', COMMANDS)
def test_a_command_of_a_page_is_real(line, tmp_path):
  _, name, *arguments = shlex.split(line)
  command = main.main.commands[name]
  if name == 'lm_eval':  # hands over to the harness; the page's is run by the slow tests
    return
  options = {o for parameter in command.params for o in parameter.opts if o.startswith('--')}
  for argument in arguments:
    option = argument.partition('=')[0]
    if option.startswith('--') and not option.startswith('--gin.'):
      assert option in options, f'{option} of {line}'
  if name in ('run', 'sweep'):
    own_root = [a for a in arguments if not a.startswith('--root=')]
    own_root = [a.replace('my/model', str(MODEL)) for a in own_root]  # is read to configure
    result = CliRunner().invoke(main.main, [name, *own_root, f'--root={tmp_path}', '--dry_run'])
    assert result.exit_code == 0, result.output or result.exception


def test_make_targets_of_the_readme_exist():
  makefile = (ROOT / 'Makefile').read_text()
  named = set(re.findall(r'(?:`|^)make ([a-z-]+)', (ROOT / 'README.md').read_text(), re.M))
  assert {'demo', 'test'} <= named
  for target in named:
    assert f'\n{target}:' in makefile, target


QUESTION_SETS = sorted((ROOT / 'gin' / 'tasks' / 'questions').glob('*.gin'))


@pytest.mark.parametrize('path', QUESTION_SETS, ids=lambda path: path.stem)
def test_one_question_set_takes_the_place_of_five(path, tmp_path):
  files = [f'--gin_file={ROOT / "experiments/smollm2/questions.gin"}', f'--gin_file={path}']
  result = CliRunner().invoke(main.main, ['run', *files, f'--root={tmp_path}', '--dry_run'])
  assert result.exit_code == 0, result.output or result.exception

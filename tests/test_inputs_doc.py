"""docs/inputs.md names every reader and every kind of problem, and none that is not there."""

import ast
import importlib
import inspect
from pathlib import Path
import re

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / 'instructretro_jax'
PAGE = (ROOT / 'docs' / 'inputs.md').read_text()
NAMED = set(re.findall(r'[A-Za-z_]\w*', ' '.join(re.findall(r'`([^`]+)`', PAGE))))
READ_IN = ('text', 'questions')
STAGES_OF = ('text.vocabulary', 'text.corpus', 'interop.stages', 'retrieval.embeddings')
OTHERS = ('retrieval.minilm', 'retrieval.word_vectors', 'questions.questions')


def module_of(name):
  return importlib.import_module(f'{PACKAGE.name}.{name}')


def modules():
  for room in READ_IN:
    for path in sorted((PACKAGE / room).glob('*.py')):
      yield module_of(f'{room}.{path.stem}')


def classes_of(module):
  found = vars(module).items()
  return {n: k for n, k in found if inspect.isclass(k) and k.__module__ == module.__name__}


def readers():
  """Public dataclasses that yield documents or questions."""
  return {
    name
    for module in modules()
    for name, kind in classes_of(module).items()
    if hasattr(kind, '__dataclass_fields__') and hasattr(kind, 'read') and name[0] != '_'
  }


def reported_kinds():
  """Literal kinds of `problems.report(KIND, ...)` and `Unusable(KIND, ...)`."""
  found = set()
  for path in PACKAGE.rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        name = getattr(node.func, 'attr', None) or getattr(node.func, 'id', None)
        if name in ('report', 'Unusable') and re.fullmatch('[a-z0-9_]+', str(node.args[0].value)):
          found.add(node.args[0].value)
  return found


def test_every_reader_is_named():
  assert len(readers()) > 15 and not readers() - NAMED


def test_every_class_that_is_named_exists():
  known = set()
  for name in (*STAGES_OF, *OTHERS):
    known |= classes_of(module_of(name)).keys()
  classes = re.findall(r'`([A-Z]\w+)[`(.]', PAGE) + re.findall(r'`\w+\.([A-Z]\w+)\.', PAGE)
  named = {name for name in classes if not name.isupper()}
  assert len(named) > 25 and not named - known - readers()


def test_arguments_that_are_named_exist():
  kinds = {}
  for module in (*modules(), *map(module_of, STAGES_OF + OTHERS)):
    kinds |= classes_of(module)
  for name, given in re.findall(r'`([A-Z]\w+)\(([^)]*)\)`', PAGE):
    wanted = {one for one in given.split(', ') if one != '...'}
    assert wanted <= set(kinds[name].__dataclass_fields__), name


def test_every_kind_of_problem_is_explained_and_no_other():
  table = PAGE.partition('## Kinds of problems')[2]
  explained = set(re.findall(r'`(\w+)`', ' '.join(re.findall(r'^\|([^|]*)\|', table, re.M))))
  assert explained == reported_kinds() and len(explained) > 15

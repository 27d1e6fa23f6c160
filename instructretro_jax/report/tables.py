"""Tables of the report: from result rows to text cells, for the page and for the console."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as ConsoleTable
from rich.text import Text

from instructretro_jax.report.categories import CATEGORIES, KINDS, RUNS

Row = Mapping[str, Any]

_METRICS = {
  'exact_match': 'exact match, %',
  'f1': 'F1, %',
  'choice': 'the likeliest option is right, %',
  'rouge_mean': 'geometric mean of ROUGE-1, -2 and -L, %',
}
_SHORT = {
  'exact_match': 'exact match',
  'f1': 'F1',
  'choice': 'choice',
  'rouge_mean': 'ROUGE',
}
_ABSENT = '–'


@dataclasses.dataclass(frozen=True)
class Cell:
  """A text and, in smaller type below it, what qualifies it: an interval or a count."""

  text: str
  note: str = ''


@dataclasses.dataclass(frozen=True)
class Table:
  """A table whose first column names the rows."""

  title: str
  columns: tuple[Cell, ...]
  rows: tuple[tuple[Cell, ...], ...]


def table_of(
  title: str, columns: Mapping[str, Cell], lines: Mapping[Cell, Mapping[str, Cell]]
) -> Table:
  """A row per arm, with its cells by the keys of the columns; a dash where it has none."""
  body = [
    (name, *(cells.get(key, Cell(_ABSENT)) for key in columns)) for name, cells in lines.items()
  ]
  return Table(title, (Cell('arm'), *columns.values()), tuple(body))


def perplexity_table(rows: Sequence[Row]) -> Table:
  """Perplexity with its interval by kind of token, and bits per byte; a row per arm and mode."""
  title = 'Perplexity by kind of token (95 % interval)'
  return _by_category(rows, CATEGORIES, title, with_bits=True)


def run_table(rows: Sequence[Row]) -> Table:
  """Perplexity by the longest run of tokens that the neighbours share with what they serve."""
  title = 'Perplexity by shared run, in tokens (95 % interval)'
  return _by_category(rows, RUNS, title, with_bits=False)


def headline_table(figures: Sequence[Row]) -> Table:
  """The figures that matter: paired differences, and what each means."""
  rows = [
    (
      Cell(figure['name'], figure['detail']),
      Cell(f'{_signed(figure["value"], 1)} {figure["unit"]}', _interval(figure, 1)),
      Cell(figure['meaning']),
    )
    for figure in figures
  ]
  columns = (Cell('figure'), Cell('difference', '95 % interval'), Cell('meaning'))
  return Table('The figures that matter, paired', columns, tuple(rows))


def change_table(changes: Sequence[Row], labels: Mapping[str, str], by: str) -> Table:
  """Perplexity against the baseline on the same tokens, by the kinds of token in `labels`."""
  found = {row['category'] for row in changes}
  lines: dict[Cell, dict[str, Cell]] = {}
  for row in changes:
    cell = Cell(f'{_signed(row["value"], 1)} %', _interval(row, 1))
    lines.setdefault(Cell(row['arm'], KINDS[row['neighbours']]), {})[row['category']] = cell
  title = f'Perplexity against {changes[0]["against"]} by {by} (paired 95 % interval)'
  return table_of(title, {c: Cell(labels[c]) for c in labels if c in found}, lines)


def question_summary(rows: Sequence[Row]) -> Table:
  """All tasks together: a row per system, a column per metric."""
  lines: dict[Cell, dict[str, Cell]] = {}
  for row in rows:
    if row['task'] == 'all' and row['metric'] in _METRICS:
      cell = _with_interval(row['value'], row)
      lines.setdefault(Cell(row['arm'], _reading(row)), {})[row['metric']] = cell
  found = {metric for cells in lines.values() for metric in cells}
  columns = {metric: Cell(_SHORT[metric]) for metric in _SHORT if metric in found}
  return table_of('Questions, all together, in % (95 % interval)', columns, lines)


def question_tables(rows: Sequence[Row]) -> tuple[Table, ...]:
  """A table per metric, and of differences in F1 one to no passages and one to the baseline:
  systems by tasks.

  The last lines of a table of answers say how often an answer stands in the passages. None where
  no questions were asked.
  """
  ceilings = [row for row in rows if row['metric'] == 'ceiling']
  tables = []
  for metric, label in _METRICS.items():
    of_metric = [row for row in rows if row['metric'] == metric]
    lines: dict[Cell, dict[str, Cell]] = {}
    for row in of_metric:
      name = Cell(row['arm'], _reading(row))
      lines.setdefault(name, {})[row['task']] = _with_interval(row['value'], row)
    if metric in ('exact_match', 'f1'):
      for row in ceilings:
        name = Cell('an answer is there', f'in {_num_passages(row)}')
        lines.setdefault(name, {})[row['task']] = _with_interval(row['value'], row)
    if lines:
      title = f'Questions: {label} (95 % interval)'
      tables.append(table_of(title, _task_columns(of_metric), lines))
  return (*tables, *_difference_tables(rows))


def _difference_tables(rows: Sequence[Row]) -> Iterator[Table]:
  baseline = next((r['difference']['against'] for r in rows if 'difference' in r), None)
  others = {
    'from_passages': 'the same arm without passages',
    'difference': f'{baseline} with as many passages',
  }
  for name, other in others.items():
    lines: dict[Cell, dict[str, Cell]] = {}
    held = [row for row in rows if row['metric'] == 'f1' and name in row]
    for row in held:
      cell = _with_interval(row[name]['value'], row[name])
      lines.setdefault(Cell(row['arm'], _reading(row)), {})[row['task']] = cell
    if held:
      title = f'Questions: F1 above {other} (paired 95 % interval)'
      yield table_of(title, _task_columns(held), lines)


def _task_columns(rows: Sequence[Row]) -> dict[str, Cell]:
  counts = {row['task']: row['count'] for row in rows}
  return {task: Cell(task, f'{count:,} questions') for task, count in counts.items()}


def arm_table(curves: Mapping[str, Sequence[Sequence[float]]]) -> Table:
  """Steps and last loss of every training arm."""
  columns = (Cell('arm'), Cell('steps'), Cell('last loss', 'nats per token'))
  rows = [
    (Cell(arm), Cell(f'{curve[-1][0]:,}'), Cell(f'{curve[-1][1]:.3f}'))
    for arm, curve in curves.items()
  ]
  return Table('Training arms', columns, tuple(rows))


def statistics_table(name: str, counts: Mapping[str, Any]) -> Table:
  """The counts of one stage; nested names are joined by a dot."""
  rows = tuple((Cell(key), Cell(value)) for key, value in _flat(counts))
  return Table(name, (Cell('count'), Cell('value')), rows)


def check_line(check: Row) -> str:
  """One check in words: what was asked, what was found, and whether that is enough."""
  verdict = 'passed' if check['passed'] else 'FAILED'
  found = f'{check["value"]:.1f} % found, at least {check["threshold"]:.1f} % wanted'
  return f'{verdict}: {check["name"]}: {found}'


def print_tables(report: Row, console: Console) -> None:
  """Prints perplexity and questions, then the figures that matter and checks; fits 80 columns."""
  perplexity, questions = report['perplexity'], report['questions']
  tables = [perplexity_table(perplexity), run_table(perplexity)] if perplexity else []
  tables += [question_summary(questions)] if questions else []
  tables += [headline_table(report['headline'])] if report['headline'] else []
  for table in tables:
    console.print(for_console(table))
  for check in report['checks']:
    console.print(Text(check_line(check), style='green' if check['passed'] else 'bold red'))


def for_console(table: Table) -> ConsoleTable:
  """The table as rich prints it."""
  printed = ConsoleTable(
    title=Text(table.title), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify='left'
  )
  for i, column in enumerate(table.columns):
    is_text = i == 0 or column.text == 'meaning'
    printed.add_column(_two_lines(column), justify='left' if is_text else 'right')
  for row in table.rows:
    printed.add_row(*(_two_lines(cell) for cell in row))
  return printed


def format_number(value: float | int | None) -> str:
  """About four significant digits; whole numbers are written out in groups of three."""
  if value is None:
    return _ABSENT
  if isinstance(value, int):
    return _minus(f'{value:,}')
  return _minus(f'{value:,.2f}' if abs(value) < 100 else f'{value:,.1f}')


def _by_category(
  rows: Sequence[Row], labels: Mapping[str, str], title: str, with_bits: bool
) -> Table:
  tokens = {row['category']: row['tokens'] for row in rows}
  shown = [category for category in labels if category in tokens]
  lines: dict[Cell, dict[str, Cell]] = {}
  for row in rows:
    cells = lines.setdefault(Cell(row['arm'], KINDS[row['neighbours']]), {})
    cells[row['category']] = _with_interval(row['perplexity'], row)
    if row['bits_per_byte'] is not None:
      cells['bits'] = Cell(f'{row["bits_per_byte"]:.3f}')
  columns = {c: Cell(labels[c], f'{tokens[c]:,} tok') for c in shown}
  return table_of(title, columns | ({'bits': Cell('bits', 'a byte')} if with_bits else {}), lines)


def _with_interval(value: float, row: Row) -> Cell:
  low, high = format_number(row['low']), format_number(row['high'])
  return Cell(format_number(value), f'{low} to {high}' if row['low'] < 0 else f'{low}–{high}')


def _interval(row: Row, digits: int) -> str:
  return f'{_signed(row["low"], digits)} to {_signed(row["high"], digits)}'


def _signed(value: float, digits: int) -> str:
  return _minus(f'{value:+,.{digits}f}')


def _minus(text: str) -> str:
  return text.replace('-', '−')


def _reading(row: Row) -> str:
  return f'{_num_passages(row)}, encoder {row["encoder"]}' if row['passages'] else 'question only'


def _num_passages(row: Row) -> str:
  return f'{row["passages"]} passage{"s" if row["passages"] > 1 else ""}'


def _flat(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
  if isinstance(value, Mapping):
    for key, inner in value.items():
      yield from _flat(inner, (*path, str(key).replace('_', ' ')))
  elif isinstance(value, (list, tuple)):
    yield ' · '.join(path), ', '.join(_scalar(item) for item in value)
  else:
    yield ' · '.join(path), _scalar(value)


def _scalar(value: Any) -> str:
  if isinstance(value, float):
    return f'{value:,.4g}' if abs(value) < 10_000 else f'{value:,.0f}'
  return f'{value:,}' if isinstance(value, int) else str(value)


def _two_lines(cell: Cell) -> Text:
  return Text.assemble(cell.text, ('\n' + cell.note if cell.note else '', 'dim'))

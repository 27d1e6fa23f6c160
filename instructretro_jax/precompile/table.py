"""The figures of a compiled step as tables for the console."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.table import Table

from instructretro_jax.precompile.topology import GIB


def table(figures: dict[str, Any]) -> Table:
  """One line a figure; the title says that none was measured."""
  made = Table(title=figures['label'], box=box.SIMPLE, show_header=False)
  made.add_column(style='bold')
  made.add_column()
  for name, value in _rows(figures):
    made.add_row(name, value)
  return made


def operations_table(figures: dict[str, Any], num: int = 12) -> Table:
  """The operations that take longest, by the compiler's estimate."""
  made = Table(title=f'slowest operations ({figures["kind"]})', box=box.SIMPLE)
  for column in ('s', 'T FLOPs', 'of peak', 'operation'):
    made.add_column(column, justify='left' if column == 'operation' else 'right')
  for o in (figures['operations'] or ())[:num]:
    share = f'{o["peak_share"]:.0%}' if o['flops'] else ''
    made.add_row(f'{o["seconds"]:.3f}', f'{o["flops"] / 1e12:,.0f}', share, o['name'])
  return made


def _rows(f: dict[str, Any]) -> Iterator[tuple[str, str]]:
  mesh = ' x '.join(f'{axis} {size}' for axis, size in f['mesh'].items())
  yield 'step', f'{f["step"]} of {f["arm"]}, {f["batch_size"]} sequences'
  yield 'on', f'{f["topology"]}: {mesh}'
  yield 'parameters', f'{f["parameters"]:,}; trained {f["trained_parameters"]:,}'
  gib = lambda count: f'{count / GIB:.1f} GiB'
  yield 'fits', f'{"yes" if f["fits"] else "NO"}: {gib(f["peak_bytes"])} of {gib(f["hbm_bytes"])}'
  if f['argument_bytes'] is None:
    return
  yield 'arguments', gib(f['argument_bytes'])
  yield 'model FLOPs a chip', f'{f["model_flops"] / 1e12:,.1f} T (causal attention by half)'
  yield 'FLOPs a chip', f'{f["flops"] / 1e12:,.1f} T, {f["flops_over_model_flops"]:.3f} of those'
  yield 'floor', f'{f["floor_seconds"]:.3f} s a step'
  yield 'collectives in series', f'{f["collective_seconds"]:.3f} s'
  yield 'MFU between', f'{f["mfu_lower"]:.1%} and {f["mfu_upper"]:.1%}'
  for kind, c in sorted(f['collectives'].items()):
    yield kind, f'{c["executions"]:,.0f} times, {c["bytes"] / 1e9:,.1f} GB'
  yield 'all-gathers as all-reduces', f'{f["gathers_as_reduces"] / 1e9:,.1f} GB'
  for name, times in sorted(f['kernels'].items()):
    unknown = ', FLOPs not counted' if name in f['unknown_kernels'] else ''
    yield 'kernel', f'{name}, {times:,.0f} times{unknown}'
  if f['open_loops']:
    yield 'beware', f'loops of unknown length, counted once: {", ".join(f["open_loops"])}'
  yield 'compiled in', f'{f["compile_seconds"]} s by {f["compiler"]}, jax {f["jax"]}'

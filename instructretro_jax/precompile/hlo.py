"""Compiled HLO text as instructions, each with the number of times that it runs in a step.

XLA's own `cost_analysis` counts the body of a loop once and leaves Pallas kernels out, so a model
of scanned layers has to be read here.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import math
import re

_ARRAY = re.compile(r'\b(pred|token|[a-z]+\d+[a-z0-9]*)\[([\d,<=]*)\]')
_OPEN, _CLOSE = '({[', ')}]'
_BITS = re.compile(r'[a-z]+(\d+)')
# Pallas kernels print a description over several lines, some of which look like computations.
_KERNEL_TEXT = re.compile(r'kernel_metadata=\{.*?\n\}\}', re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Array:
  """Type and sizes of one array in a shape."""

  dtype: str
  sizes: tuple[int, ...]

  @property
  def num_bytes(self) -> int:
    """Bytes of the array as it is laid out."""
    bits = _BITS.match(self.dtype)
    return math.prod(self.sizes) * (max(8, int(bits.group(1))) // 8 if bits else 1)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation: `name = shape opcode(inside), attributes`."""

  name: str
  shape: str
  opcode: str
  inside: str
  attributes: str
  is_root: bool

  @functools.cached_property
  def operands(self) -> tuple[str, ...]:
    """Names of the instructions that it reads."""
    return tuple(re.findall(r'%([^\s,()]+)', self.inside))

  @functools.cached_property
  def arrays(self) -> tuple[Array, ...]:
    """The arrays that it gives."""
    return arrays_of(self.shape)

  def attribute(self, name: str) -> str | None:
    """The value of an attribute up to its next comma or brace, without the % of a name."""
    found = re.search(rf'\b{name}=\{{?%?([^\s,)}}]+)', self.attributes)
    return found.group(1) if found else None

  def called(self) -> tuple[str, ...]:
    """Computations that this instruction runs once, loops and reductions aside."""
    if self.opcode not in ('fusion', 'call', 'async-start', 'conditional'):
      return ()
    names = re.findall(
      r'\b(?:calls|to_apply|true_computation|false_computation)=%?([^\s,)}]+)', self.attributes
    )
    branches = re.search(r'branch_computations=\{([^}]*)\}', self.attributes)
    return (*names, *(re.findall(r'%?([^\s,%]+)', branches.group(1)) if branches else ()))


Computation = dict[str, Instruction]  # in the order of the text, which is that of the schedule


@dataclasses.dataclass(frozen=True)
class Module:
  """A compiled program."""

  computations: dict[str, Computation]
  entry: str


@dataclasses.dataclass(frozen=True)
class Executed:
  """An instruction in its place."""

  instruction: Instruction
  computation: Computation
  times: float  # a step
  is_fused: bool  # inside a fusion, whose own line has the cycles


def arrays_of(shape: str) -> tuple[Array, ...]:
  """The arrays that a shape names, tuples flattened."""
  found = []
  for dtype, sizes in _ARRAY.findall(shape):
    found.append(Array(dtype, tuple(int(s.strip('<=')) for s in sizes.split(',') if s)))
  return tuple(found)


def parse(text: str) -> Module:
  """Reads the text of a compiled program. Raises ValueError if there is no entry computation."""
  computations: dict[str, Computation] = {}
  current: Computation | None = None
  entry = None
  for line in _KERNEL_TEXT.sub('kernel_metadata={}}', text).splitlines():
    if line[:1].strip() and line.rstrip().endswith('{') and '->' in line:
      is_entry, name = re.match(r'(ENTRY\s+)?%?([^\s(]+)', line).groups()
      current = computations.setdefault(name, {})
      entry = name if is_entry else entry
    elif line == '}':
      current = None
    elif current is not None and (instruction := _instruction(line)):
      current[instruction.name] = instruction
  if entry is None:
    raise ValueError('this is no HLO text: it has no line that begins with ENTRY')
  return Module(computations, entry)


def _instruction(line: str) -> Instruction | None:
  start = re.match(r'\s*(ROOT\s+)?%?(\S+) = ', line)
  if not start:
    return None
  rest = line[start.end() :]
  shape_end = _closing(rest, 0) + 1 if rest.startswith('(') else rest.find(' ')
  opcode = re.match(r'\s*([a-z][a-z0-9\-]*)\(', rest[shape_end:])
  if not opcode:
    return None
  begin = shape_end + opcode.end() - 1
  end = _closing(rest, begin)
  return Instruction(
    name=start.group(2),
    shape=rest[:shape_end],
    opcode=opcode.group(1),
    inside=rest[begin + 1 : end],
    attributes=rest[end + 1 :],
    is_root=bool(start.group(1)),
  )


def _closing(text: str, begin: int) -> int:
  """Where the bracket at `begin` closes; the end of the text if it does not."""
  depth = 0
  for n in range(begin, len(text)):
    if text[n] in _OPEN:
      depth += 1
    elif text[n] in _CLOSE:
      depth -= 1
      if not depth:
        return n
  return len(text)


def walk(module: Module) -> Iterator[Executed]:
  """Every instruction with its count a step; of a conditional, all branches.

  A loop whose trip count the text does not tell is walked once and comes with `times` as if so;
  `trip_count` of it is None.
  """

  def visit(name: str, times: float, is_fused: bool) -> Iterator[Executed]:
    computation = module.computations[name]
    for instruction in computation.values():
      yield Executed(instruction, computation, times, is_fused)
      if instruction.opcode == 'while':
        trips = trip_count(module, computation, instruction)
        yield from visit(instruction.attribute('body'), times * (trips or 1), is_fused)
      for called in instruction.called():
        yield from visit(called, times, is_fused or instruction.opcode == 'fusion')

  yield from visit(module.entry, 1.0, False)


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
  """How often a loop's body runs, if it counts up to a constant.

  XLA writes the number down for CPUs and GPUs. For TPUs it is read from the condition (counter <
  limit) and from what the body adds to the counter: 1 in scans, 2 in windowed einsums.
  """
  if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
    return int(known.group(1))
  condition = module.computations[loop.attribute('condition')]
  body = module.computations[loop.attribute('body')]
  start = computation.get(loop.operands[0]) if loop.operands else None
  carried = start.operands if start is not None and start.opcode == 'tuple' else ()

  def constant(within: Computation, name: str) -> int | None:
    """The value of a constant, or of an element of the loop's state that begins as one."""
    found = within.get(name)
    if found is None:
      return None
    if found.opcode == 'constant':
      return int(found.inside) if re.fullmatch(r'-?\d+', found.inside) else None
    if found.opcode in ('copy', 'bitcast'):
      return constant(within, found.operands[0])
    if found.opcode == 'get-tuple-element' and within is not computation and carried:
      return constant(computation, carried[int(found.attribute('index'))])
    return None

  root = next(i for i in condition.values() if i.is_root)
  limits = [value for name in root.operands if (value := constant(condition, name))]
  counters = [
    int(condition[name].attribute('index'))
    for name in root.operands
    if name in condition
    and condition[name].opcode == 'get-tuple-element'
    and not constant(condition, name)
  ]
  if not limits or max(limits) <= 0:
    return None
  step = _added(body, counters[0], constant) if counters else 1
  return max(limits) // step if step else None


def _added(body: Computation, index: int, constant) -> int | None:
  """What one pass of a loop's body adds to the element `index` of its state."""

  def follow(name: str, total: int) -> int | None:
    found = body.get(name)
    if found is None or found.opcode == 'get-tuple-element':
      return total
    if found.opcode in ('copy', 'bitcast'):
      return follow(found.operands[0], total)
    if found.opcode == 'add':
      for one, other in (found.operands, found.operands[::-1]):
        if (value := constant(body, other)) and body[one].opcode != 'constant':
          return follow(one, total + value)
    return None

  root = next(i for i in body.values() if i.is_root)
  if root.opcode != 'tuple':
    return 1  # the state is one fusion's result; scans count by 1
  return follow(root.operands[index], 0)

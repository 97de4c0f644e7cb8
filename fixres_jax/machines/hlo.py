"""The text of a compiled program: what its instructions are, and how often each runs.

The text is described at https://openxla.org/xla/hlo_text: computations, made of instructions. It is the one account of
a program that the compilers for CPU, GPU and TPU all give.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'\s+(ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)')
_CALLED = re.compile(r'(?:calls|to_apply|body|condition|\w+_computations?)=(?:%?([\w.-]+)|\{([^}]*)\})')
_ARRAY = re.compile(r'\b(pred|[a-z]+\d+)\w*\[([\d,]*)\](\{[^}]*\})?')
# What runs the computations that it names; what others name is a part of them, such as the sum of a reduction.
_RUNS = ('while', 'conditional', 'call', 'async-start')
_ASYNC_REST = ('async-update', 'async-done')  # name again what their async-start runs


@dataclasses.dataclass(frozen=True)
class Array:
    """Hold the shape of an array, and where it lies.

    Attributes:
      dims: of the axes.
      num_bytes: without the padding of its layout.
      in_main_memory: whether it lies in the device's large memory: the layouts of TPU programs name any other memory by
        its number, as in S(1).
    """

    dims: tuple[int, ...]
    num_bytes: int
    in_main_memory: bool


@dataclasses.dataclass(frozen=True)
class Instruction:
    """Hold one line of a computation.

    Attributes:
      name: without the %.
      shape: text of the shape of its result: of an array or of a tuple.
      opcode: such as 'convolution'.
      operands: their names.
      rest: text of the operands and of all attributes.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of the result, in order."""
        return tuple(_arrays(self.shape))

    def attribute(self, name: str) -> str:
        """Return the word after 'name=', or ''."""
        found = re.search(rf'\b{name}=([^\s,]+)', self.rest)
        return found[1] if found else ''

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """The computations that it names."""
        names = []
        for one, several in _CALLED.findall(self.rest):
            names += [one] if one else re.findall(r'[\w.-]+', several)
        return tuple(names)


class Computation(dict[str, Instruction]):
    """Instructions by their names, in order; the last one marked ROOT is the result."""

    root: Instruction | None = None

    @functools.cached_property
    def users(self) -> Mapping[str, list[Instruction]]:
        """The instructions that take each value."""
        found = {name: [] for name in self}
        for instruction in self.values():
            for operand in dict.fromkeys(instruction.operands):
                found.setdefault(operand, []).append(instruction)
        return found

    def arrays(self, names: tuple[str, ...]) -> list[Array]:
        """Return the arrays of the values of those names."""
        return [array for name in names if name in self for array in self[name].arrays]


@dataclasses.dataclass(frozen=True)
class Executed:
    """Hold an instruction as it runs.

    Attributes:
      instruction: itself.
      name: of the computation that it stands in.
      computation: that computation.
      times: how often it runs in one run of the program.
      fused: whether it is a part of another instruction, and not one of its own.
    """

    instruction: Instruction
    name: str
    computation: Computation
    times: int
    fused: bool


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Return the computations by their names, and the name of the one that is the program."""
    computations, entry, here = {}, '', None
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            here = computations[head[2]] = Computation()
            entry = head[2] if head[1] else entry
        elif here is not None and (found := _INSTRUCTION.match(line)):
            root, name, shape, opcode, rest = found.groups()
            here[name] = Instruction(name, shape, opcode, _operands(rest), rest)
            if root:
                here.root = here[name]
    return computations, entry


def executed(computations: Mapping[str, Computation], entry: str) -> Iterator[Executed]:
    """Iterate over all instructions that a program runs, what is inside a loop as often as the loop runs.

    Where that cannot be read from the text, it counts as once. Of the branches of a condition each counts once.
    """

    def visit(name: str, times: int, fused: bool) -> Iterator[Executed]:
        here = computations.get(name, Computation())
        for instruction in here.values():
            yield Executed(instruction, name, here, times, fused)
            if instruction.opcode not in _ASYNC_REST:
                repeats = _trips(instruction, here, computations) if instruction.opcode == 'while' else 1
                for called in instruction.called:
                    yield from visit(called, times * repeats, fused or instruction.opcode not in _RUNS)

    yield from visit(entry, 1, False)


def _trips(loop: Instruction, around: Computation, computations: Mapping[str, Computation]) -> int:
    """Return how often a while loop runs, as the compiler says or as its counter does; 1 where neither can be read."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    test, inside = (computations[loop.attribute(name).lstrip('%')] for name in ('condition', 'body'))
    if test.root.attribute('direction') != 'LT':
        return 1
    counter, limit = test.root.operands
    place = test[counter].attribute('index')
    initial = around[loop.operands[0]]
    if not place or initial.opcode != 'tuple' or inside.root.opcode != 'tuple':
        return 1
    first, new = (values.operands[int(place)] for values in (initial, inside.root))
    start, end = _constant(first, around), _constant(limit, test)
    steps = [_constant(name, inside) for name in inside[new].operands] if inside[new].opcode == 'add' else []
    step = sum(value for value in steps if value is not None)
    return max(0, -((start - end) // step)) if step and start is not None and end is not None else 1


def _operands(rest: str) -> tuple[str, ...]:
    return tuple(re.findall(r'%([\w.-]+)', re.split(r'\), \w+=', rest)[0]))


def _constant(name: str, instructions: Computation) -> int | None:
    """Return the value of a whole number, through its copies; None if it is no constant."""
    instruction = instructions.get(name)
    if instruction is None:
        return None
    if instruction.opcode in ('copy', 'bitcast'):
        return _constant(instruction.operands[0], instructions)
    value = re.match(r'(-?\d+)\)', instruction.rest) if instruction.opcode == 'constant' else None
    return int(value[1]) if value else None


def _arrays(shape: str) -> Iterator[Array]:
    for dtype, dims, layout in _ARRAY.findall(shape):
        sizes = tuple(int(size) for size in dims.split(',') if size)
        bits = 8 if dtype == 'pred' else int(re.search(r'\d+', dtype)[0])
        yield Array(sizes, math.prod(sizes) * bits // 8, not re.search(r'S\([1-9]', layout))

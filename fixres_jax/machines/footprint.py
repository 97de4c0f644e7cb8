"""What a compiled step takes of each device: memory, work, traffic between devices, and time at best."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax

from fixres_jax.machines.chips import Chip

_SHAPE = re.compile(r'\b(pred|[a-z]+\d+)\w*\[([\d,]*)\]')
# Bytes that leave a chip, as a multiple of the bytes of an operation's result, when n chips pass them around a ring.
# The result of a reduce-scatter is one n-th of what goes around.
_TRAFFIC = {
    'all-reduce': lambda n: 2 * (n - 1) / n,
    'all-gather': lambda n: (n - 1) / n,
    'reduce-scatter': lambda n: n - 1,
    'all-to-all': lambda n: (n - 1) / n,
    'collective-permute': lambda n: 1.0,
    'collective-broadcast': lambda n: 1.0,
}

# The text of a compiled program, see https://openxla.org/xla/hlo_text: computations, made of instructions.
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'\s+(ROOT )?%?([\w.-]+) = (.*)')
_COLLECTIVE = re.compile(rf'(.*?) ({"|".join(_TRAFFIC)})(-start)?\(')
_CALLED = re.compile(r'(?:calls|to_apply|body|condition|\w+_computations?)=(?:%?([\w.-]+)|\{([^}]*)\})')
_ASYNC_REST = re.compile(r' async-(?:update|done)\(')  # names again what its async-start calls


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Hold what one device needs to run a compiled step once.

    Attributes:
      parameters, optimizer: bytes of the state's leaves on this device.
      temporary: bytes of everything that lives only during the step.
      memory: bytes in all: arguments, results that take no argument's place, temporaries and the program.
      flops: floating point operations.
      bytes_accessed: bytes read and written in memory.
      collectives: kind -> {'count', 'bytes'}, of operations between devices and their results; those inside a loop
        count as often as it runs.
    """

    parameters: int
    optimizer: int
    temporary: int
    memory: int
    flops: float
    bytes_accessed: float
    collectives: Mapping[str, Mapping[str, int]]


def measure(compiled: Any, *, parameters: Any, optimizer: Any = (), num_repeats: int = 1) -> Footprint:
    """Read the compiler's own figures.

    Args:
      compiled: from `jitted.lower(...).compile()`.
      parameters: tree of shapes with shardings.
      optimizer: likewise.
      num_repeats: passes through the inner loop of the step. The compiler counts a loop body once, so its work is
        multiplied by `accumulate_steps`.
    """
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Footprint(
        parameters=_bytes_on_device(parameters),
        optimizer=_bytes_on_device(optimizer),
        temporary=memory.temp_size_in_bytes,
        memory=held + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        flops=cost['flops'] * num_repeats,
        bytes_accessed=cost['bytes accessed'] * num_repeats,
        collectives=collectives(compiled.as_text()),
    )


def _bytes_on_device(tree: Any) -> int:
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def collectives(hlo: str) -> dict[str, dict[str, int]]:
    """Count the operations between devices in the text of a compiled program, and the bytes of their results.

    What is inside a loop counts as often as the loop runs, or once where that cannot be read from the text. An
    asynchronous operation counts once, whatever it is cut into.
    """
    computations, roots, entry = _parse(hlo)
    found: dict[str, dict[str, int]] = {}
    seen = set()

    def visit(name: str, times: int, fused: bool = False) -> None:
        for text in computations.get(name, {}).values():
            if operation := _COLLECTIVE.match(text):
                # A TPU program repeats an asynchronous operation in every fusion that runs while it is under way.
                channel = re.search(r'channel_id=\d+|$', text)[0]
                if fused and channel and channel in seen:
                    continue
                seen.add(channel)
                shapes, kind, start = operation.groups()
                # There a reduce-scatter is a fusion of this name, of an all-reduce and a slice.
                if name.startswith('all-reduce-scatter'):
                    shapes, kind = roots[name].split(' dynamic-slice(')[0], 'reduce-scatter'
                sums = found.setdefault(kind, {'count': 0, 'bytes': 0})
                sums['count'] += times
                sums['bytes'] += times * _result_bytes(shapes, kind, start)
            elif not _ASYNC_REST.search(text):
                repeats = _trips(text, computations[name], computations, roots) if ' while(' in text else 1
                for one, several in _CALLED.findall(text):
                    for called in [one] if one else re.findall(r'[\w.-]+', several):
                        visit(called, times * repeats, ' fusion(' in text)

    visit(entry, 1)
    return found


def _result_bytes(shapes: str, kind: str, start: str | None) -> int:
    if not start or kind == 'all-reduce':
        return sum(_num_bytes(dtype, dims) for dtype, dims in _SHAPE.findall(shapes))
    # An asynchronous gather or permutation lists its operands, then as many results, and u32[] for its own use.
    listed = [_num_bytes(dtype, dims) for dtype, dims in _SHAPE.findall(shapes.replace('u32[]', ''))]
    return sum(listed[len(listed) // 2 :])


def _parse(hlo: str) -> tuple[dict[str, dict[str, str]], dict[str, str], str]:
    """Return (computation -> name of an instruction -> its text, computation -> text of its result, the entry)."""
    computations, roots, entry, name = {}, {}, '', ''
    for line in hlo.splitlines():
        if head := _COMPUTATION.match(line):
            name = head[2]
            entry = name if head[1] else entry
            computations[name] = {}
        elif name and (instruction := _INSTRUCTION.match(line)):
            computations[name][instruction[2]] = instruction[3]
            if instruction[1]:
                roots[name] = instruction[3]
    return computations, roots, entry


def _trips(
    loop: str, around: Mapping[str, str], computations: Mapping[str, Mapping[str, str]], roots: Mapping[str, str]
) -> int:
    """Return how often a while loop runs, as the compiler says or as its counter does; 1 where neither can be read."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop):
        return int(known[1])
    condition, body = (re.search(rf'{name}=%?([\w.-]+)', loop)[1] for name in ('condition', 'body'))
    if 'direction=LT' not in roots[condition]:
        return 1
    inside, test = computations[body], computations[condition]
    counter, limit = _operands(roots[condition])
    place = re.search(r'index=(\d+)', test[counter])
    tuples = around[_operands(loop)[0]], roots[body]
    if not place or not all(' tuple(' in text for text in tuples):
        return 1
    first, new = (_operands(text)[int(place[1])] for text in tuples)
    start, end = _constant(first, around), _constant(limit, test)
    steps = [_constant(name, inside) for name in _operands(inside[new])] if ' add(' in inside[new] else []
    step = sum(value for value in steps if value is not None)
    return max(0, -((start - end) // step)) if step and start is not None and end is not None else 1


def _operands(text: str) -> list[str]:
    """Return the names of an instruction's operands."""
    return re.findall(r'%([\w.-]+)', re.split(r'\), \w+=', text)[0])


def _constant(name: str, instructions: Mapping[str, str]) -> int | None:
    """Return the value of a whole number, through its copies; None if it is no constant."""
    text = instructions.get(name, '')
    if re.search(r' (copy|bitcast)\(', text):
        return _constant(_operands(text)[0], instructions)
    constant = re.search(r' constant\((-?\d+)\)', text)
    return int(constant[1]) if constant else None


def _num_bytes(dtype: str, dims: str) -> int:
    bits = 8 if dtype == 'pred' else int(re.search(r'\d+', dtype).group())
    return math.prod(int(dim) for dim in dims.split(',') if dim) * bits // 8


def seconds(footprint: Footprint, chip: Chip, num_chips: int, *, devices_per_chip: int = 1) -> dict[str, float]:
    """Return the least time of a step by the published figures: {'compute', 'memory', 'links', 'step'}.

    The step is the longer of computing at peak and moving all bytes at full memory bandwidth, and after it all traffic
    between chips around a ring over all links.
    """
    compute = footprint.flops * devices_per_chip / chip.flops
    memory = footprint.bytes_accessed * devices_per_chip / chip.memory_bandwidth
    traffic = sum(_TRAFFIC[kind](num_chips) * entry['bytes'] for kind, entry in footprint.collectives.items())
    links = traffic * devices_per_chip / chip.link_bandwidth
    return {'compute': compute, 'memory': memory, 'links': links, 'step': max(compute, memory) + links}

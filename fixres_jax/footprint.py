"""What a compiled step takes of each device: memory, work, traffic between devices, and time at best."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax

from fixres_jax.chips import Chip

_KINDS = 'all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast'
_INSTRUCTION = re.compile(rf'= (.*?) ({_KINDS})(-start)?\(')
_SHAPE = re.compile(r'\b(pred|[a-z]+\d+)\w*\[([\d,]*)\]')
# Bytes that leave a chip, as a multiple of an operation's bytes, when n chips pass them around a ring.
_TRAFFIC = {'all-reduce': lambda n: 2 * (n - 1) / n, 'collective-permute': lambda n: 1.0}


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Hold what one device needs to run a compiled step once.

    Attributes:
      parameters, optimizer: bytes of the state's leaves on this device.
      temporary: bytes of everything that lives only during the step.
      memory: bytes in all: arguments, results that take no argument's place, temporaries and the program.
      flops: floating point operations.
      bytes_accessed: bytes read and written in memory.
      collectives: kind -> {'count', 'bytes'}, of operations between devices and their results.
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
      num_repeats: passes through the step's inner loop, whose work the compiler counts once.
    """
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    own = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Footprint(
        parameters=_bytes_on_device(parameters),
        optimizer=_bytes_on_device(optimizer),
        temporary=memory.temp_size_in_bytes,
        memory=own + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        flops=cost['flops'] * num_repeats,
        bytes_accessed=cost['bytes accessed'] * num_repeats,
        collectives=collectives(compiled.as_text()),
    )


def _bytes_on_device(tree: Any) -> int:
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def collectives(hlo: str) -> dict[str, dict[str, int]]:
    """Count the operations between devices in the text of a compiled program, and the bytes of their results."""
    found: dict[str, dict[str, int]] = {}
    for shapes, kind, start in _INSTRUCTION.findall(hlo):
        sizes = [_num_bytes(dtype, dims) for dtype, dims in _SHAPE.findall(shapes)]
        # An asynchronous gather or permutation also lists its operands; the result is the largest.
        size = max(sizes) if start and kind != 'all-reduce' else sum(sizes)
        entry = found.setdefault(kind, {'count': 0, 'bytes': 0})
        entry['count'] += 1
        entry['bytes'] += size
    return found


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
    traffic = sum(
        _TRAFFIC.get(kind, lambda n: (n - 1) / n)(num_chips) * entry['bytes']
        for kind, entry in footprint.collectives.items()
    )
    links = traffic * devices_per_chip / chip.link_bandwidth
    return {'compute': compute, 'memory': memory, 'links': links, 'step': max(compute, memory) + links}

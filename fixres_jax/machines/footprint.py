"""What a compiled step takes of each device: memory, work, traffic between devices, and an estimate of its time."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax

from fixres_jax.machines import collectives, hlo, work
from fixres_jax.machines.chips import Chip


@dataclasses.dataclass(frozen=True)
class Work:
    """Hold what one device does in one run of a program; what is in a loop counts as often as the loop runs.

    Attributes:
      flops: floating point operations of convolutions and products of matrices.
      bytes_moved: read from and written to the large memory of the device. What stays in the memory on a TPU's chip
        does not count, nor does padding.
      cycles: sum of the TPU compiler's estimates of the instructions that it gives one for; 0 from other compilers.
      collectives: kind -> {'count', 'bytes'}, of operations between devices and their results.
    """

    flops: int
    bytes_moved: int
    cycles: int
    collectives: Mapping[str, Mapping[str, int]]


@dataclasses.dataclass(frozen=True)
class Footprint(Work):
    """Hold what one device needs to run a compiled step once.

    Attributes:
      parameters, optimizer: bytes of the state's leaves on this device.
      temporary: bytes of everything that lives only during the step.
      memory: bytes in all: arguments, results that take no argument's place, temporaries and the program.
    """

    parameters: int
    optimizer: int
    temporary: int
    memory: int


def count(text: str) -> Work:
    """Count the work in the text of a compiled program."""
    computations, entry = hlo.parse(text)
    steps = list(hlo.executed(computations, entry))
    between = list(collectives.find(steps, computations))
    sums = {}
    for one in between:
        kind = sums.setdefault(one.kind, {'count': 0, 'bytes': 0})
        kind['count'] += one.times
        kind['bytes'] += one.times * one.result_bytes
    moved = sum(step.times * work.memory_bytes(step, computations) for step in steps)
    return Work(
        flops=sum(step.times * work.flops(step) for step in steps),
        bytes_moved=moved + sum(one.times * one.memory_bytes for one in between),
        cycles=sum(step.times * work.cycles(step) for step in steps),
        collectives=sums,
    )


def measure(compiled: Any, *, parameters: Any, optimizer: Any = ()) -> Footprint:
    """Read the compiler's figures of memory, and count the work in the text of its program.

    The compilers' own analyses of cost are not asked: that for GPUs does not exist, and that for TPUs counts what never
    leaves the chip as memory, and the inside of a loop once.

    Args:
      compiled: from `jitted.lower(...).compile()`.
      parameters: tree of shapes with shardings.
      optimizer: likewise.
    """
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Footprint(
        parameters=_bytes_on_device(parameters),
        optimizer=_bytes_on_device(optimizer),
        temporary=memory.temp_size_in_bytes,
        memory=held + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        **vars(count(compiled.as_text())),
    )


def _bytes_on_device(tree: Any) -> int:
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def seconds(work: Work, chip: Chip, num_chips: int, *, devices_per_chip: int = 1) -> dict[str, float]:
    """Return bounds of a step's time, and the estimate that follows from them.

    Returns:
      {'arithmetic': products at peak speed, 'memory': bytes at full bandwidth, 'cycles': the compiler's estimate at the
      chip's clock, where both are known, 'links': collectives around a ring over all links, 'step': the largest of the
      first three, and after it the links}.
    """
    bounds = {
        'arithmetic': work.flops * devices_per_chip / chip.flops,
        'memory': work.bytes_moved * devices_per_chip / chip.memory_bandwidth,
    }
    if work.cycles and chip.clock:
        bounds['cycles'] = work.cycles / chip.clock
    traffic = sum(collectives.TRAFFIC[kind](num_chips) * entry['bytes'] for kind, entry in work.collectives.items())
    links = traffic * devices_per_chip / chip.link_bandwidth
    return bounds | {'links': links, 'step': max(bounds.values()) + links}

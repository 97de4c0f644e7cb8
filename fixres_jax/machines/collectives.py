"""Operations between devices in a compiled program, each counted once."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping

from fixres_jax.machines.hlo import Array, Computation, Executed

# Bytes that leave a chip, as a multiple of the bytes of an operation's result, when n chips pass them around a ring.
# The result of a reduce-scatter is one n-th of what goes around.
TRAFFIC = {
    'all-reduce': lambda n: 2 * (n - 1) / n,
    'all-gather': lambda n: (n - 1) / n,
    'reduce-scatter': lambda n: n - 1,
    'all-to-all': lambda n: (n - 1) / n,
    'collective-permute': lambda n: 1.0,
    'collective-broadcast': lambda n: 1.0,
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """Hold an operation between devices.

    Attributes:
      kind: of `TRAFFIC`.
      times: how often it runs.
      result_bytes: of its result on a device.
      memory_bytes: read from and written to the large memory of a device.
    """

    kind: str
    times: int
    result_bytes: int
    memory_bytes: int


def find(steps: Iterable[Executed], computations: Mapping[str, Computation]) -> Iterator[Collective]:
    """Iterate over the operations between devices; an asynchronous one counts once, whatever it is cut into."""
    seen = set()
    for step in steps:
        instruction = step.instruction
        kind = instruction.opcode.removesuffix('-start')
        if kind not in TRAFFIC:
            continue
        operands, results = step.computation.arrays(instruction.operands), instruction.arrays
        channel = instruction.attribute('channel_id')
        # In a TPU program a reduce-scatter is a fusion of this name, of an all-reduce and a slice. Channels do not tell
        # them apart. An asynchronous operation is repeated, by its channel, in every fusion that runs beside it.
        if step.name.startswith('all-reduce-scatter'):
            kind, results = 'reduce-scatter', computations[step.name].root.arrays
        elif step.fused and channel and channel in seen:
            continue
        elif instruction.opcode.endswith('-start') and kind != 'all-reduce':
            results = _second_half(instruction.shape, results)
        seen.add(channel)
        in_memory = [array.num_bytes for array in (*operands, *results) if array.in_main_memory]
        yield Collective(kind, step.times, sum(array.num_bytes for array in results), sum(in_memory))


def _second_half(shape: str, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """Return the results of an asynchronous gather or permutation: it lists its operands first, and u32[] at last."""
    listed = arrays[: len(arrays) - len(re.findall(r'\bu32\[\]', shape))]
    return listed[len(listed) // 2 :]

"""What one instruction of a compiled program asks of a device: products, and bytes of its memory."""

import functools
import math
import re
from collections.abc import Iterator, Mapping

from fixres_jax.machines.collectives import TRAFFIC
from fixres_jax.machines.hlo import Computation, Executed, Instruction

# Convolutions of cuDNN by the call's target: which of (operand, operand, result) is the forward convolution's input,
# kernel and output. Its window and the labels of its axes are the forward convolution's in all of them.
_CUDNN = {
    '__cudnn$convForward': (0, 1, 2),
    '__cudnn$convBiasActivationForward': (0, 1, 2),
    '__cudnn$convBackwardInput': (2, 1, 0),
    '__cudnn$convBackwardFilter': (0, 2, 1),
}
# What moves nothing: names for values, and what only runs others.
_FREE = (
    'parameter',
    'constant',
    'tuple',
    'get-tuple-element',
    'bitcast',
    'while',
    'conditional',
    'call',
    'async-start',
)
_FREE_CALLS = ('AllocateBuffer', 'ConcatBitcast')
_ASYNC_CALLS = ('AsyncCollectiveStart', 'AsyncCollectiveDone')
_SLICES = ('slice', 'dynamic-slice', 'gather')
_COPIES = ('copy-start', 'slice-start')


def flops(step: Executed) -> int:
    """Return the floating point operations of a convolution or of a product of matrices; 0 for all else.

    An addition and a multiplication are two. What a convolution multiplies with its padding does not count.
    """
    instruction, target = step.instruction, _target(step.instruction)
    arrays = step.computation.arrays(instruction.operands) + list(instruction.arrays)
    if instruction.opcode == 'convolution':
        return _of_convolution(instruction, *(array.dims for array in arrays[:3]))
    if target in _CUDNN:
        values = arrays[0], arrays[1], instruction.arrays[0]
        return _of_convolution(instruction, *(values[place].dims for place in _CUDNN[target]))
    if instruction.opcode == 'dot' or target.startswith('__cublas'):
        contracted = re.search(r'lhs_contracting_dim\w*"?[=:][{\[]([^}\]]*)', instruction.rest)[1]
        axes = [int(axis) for axis in re.findall(r'\d+', contracted)]
        return 2 * math.prod(instruction.arrays[0].dims) * math.prod(arrays[0].dims[axis] for axis in axes)
    return 0


def _of_convolution(
    instruction: Instruction, image: tuple[int, ...], kernel: tuple[int, ...], output: tuple[int, ...]
) -> int:
    of_image, of_kernel, of_output = re.split('_|->', instruction.attribute('dim_labels'))
    window = re.search(r'window={([^}]*)}', instruction.rest)
    given = dict(re.findall(r'(\w+)=(\S+)', window[1] if window else ''))
    pairs = 1
    for axis in sorted(set(of_image) - set('bf')):
        number = int(axis)

        def option(name, default, number=number):
            return given[name].split('x')[number] if name in given else default

        pairs *= _pairs(
            image[of_image.index(axis)],
            kernel[of_kernel.index(axis)],
            output[of_output.index(axis)],
            stride=int(option('stride', 1)),
            before=int(option('pad', '0_0').split('_')[0]),
            spread=int(option('lhs_dilate', 1)),
            reach=int(option('rhs_dilate', 1)),
        )
    inputs = kernel[of_kernel.index('i')]
    return 2 * pairs * inputs * output[of_output.index('b')] * output[of_output.index('f')]


@functools.cache
def _pairs(image: int, kernel: int, output: int, *, stride: int, before: int, spread: int, reach: int) -> int:
    """Count the pairs of an output and a tap of the kernel that meet a pixel, along one axis.

    The pixels stand `spread` apart after `before` of padding, the taps `reach` apart.
    """
    taps = range(0, kernel * reach, reach)
    places = (start + tap - before for start in range(0, output * stride, stride) for tap in taps)
    return sum(0 <= place <= (image - 1) * spread and place % spread == 0 for place in places)


def memory_bytes(step: Executed, computations: Mapping[str, Computation]) -> int:
    """Return the bytes that an instruction reads from and writes to the large memory of the device.

    Of what it only slices it reads the slice; where it updates a part of an array in place, it moves that part.
    Operations between devices are not counted here: see `collectives.find`.
    """
    instruction, here = step.instruction, step.computation
    opcode = instruction.opcode
    if step.fused or opcode in _FREE or opcode.endswith(('-done', '-update')):
        return 0
    if _is_collective(instruction) or _target(instruction) in _FREE_CALLS:
        return 0
    if opcode in _COPIES:
        # The result lists what is copied, the copy, or both the other way round, and a number for the device's own use.
        copied = instruction.arrays[0 if opcode == 'copy-start' else -2]
        source = here.arrays(instruction.operands[:1])
        return sum(copied.num_bytes for end in (copied, *source) if end.in_main_memory)
    return sum(_read(instruction, here, computations)) + sum(_written(instruction, here, computations))


def _read(instruction: Instruction, here: Computation, computations: Mapping[str, Computation]) -> Iterator[int]:
    """Yield the bytes read of each operand."""
    for number, name in enumerate(instruction.operands):
        if instruction.opcode != 'fusion' and name in instruction.operands[:number]:
            continue  # as in a square
        arrays = here.arrays((name,))
        part = _part_read(instruction, name, number, computations)
        if any(array.in_main_memory for array in arrays):
            yield sum(array.num_bytes for array in arrays if array.in_main_memory) if part is None else part


def _part_read(user: Instruction, name: str, number: int, computations: Mapping[str, Computation]) -> int | None:
    """Return the bytes that an instruction reads of an operand; None for all of them."""
    if user.opcode in _SLICES and user.operands[0] == name:
        return sum(array.num_bytes for array in user.arrays)
    if user.opcode == 'dynamic-update-slice' and user.operands[0] == name:
        return 0
    if user.opcode != 'fusion':
        return None
    inside = computations[user.called[0]]
    parameters = [one for one in inside.values() if one.opcode == 'parameter']
    inner = next((one.name for one in parameters if one.rest.startswith(f'{number})')), None)
    return _part_read_inside(inside, inner, computations)


def _part_read_inside(inside: Computation, name: str | None, computations: Mapping[str, Computation]) -> int | None:
    total = 0
    for user in inside.users.get(name, []):
        if user.opcode == 'tuple' or _is_collective(user):
            continue  # It passes through, or is on its way to another device.
        if user.opcode == 'bitcast':
            part = _part_read_inside(inside, user.name, computations)
        else:
            part = _part_read(user, name, user.operands.index(name), computations)
        if part is None:
            return None
        total += part
    return total


def _written(instruction: Instruction, here: Computation, computations: Mapping[str, Computation]) -> Iterator[int]:
    """Yield the bytes written of each result."""
    parts = _updates(instruction, here, computations)
    for array, part in zip(instruction.arrays, parts, strict=True):
        if array.in_main_memory:
            yield array.num_bytes if part is None else part


def _updates(instruction: Instruction, here: Computation, computations: Mapping[str, Computation]) -> list[int | None]:
    """Return for each result the bytes of the part that is updated in place; None where all of it is new."""
    if instruction.opcode == 'parameter' or _is_collective(instruction):
        return [0] * len(instruction.arrays)
    if instruction.opcode == 'dynamic-update-slice':
        return [sum(array.num_bytes for array in here.arrays(instruction.operands[1:2]))]
    if instruction.opcode == 'bitcast' and instruction.operands[0] in here:
        return _updates(here[instruction.operands[0]], here, computations)
    if instruction.opcode == 'tuple':
        return [part for name in instruction.operands for part in _updates(here[name], here, computations)]
    if instruction.opcode == 'fusion' and (root := computations[instruction.called[0]].root):
        return _updates(root, computations[instruction.called[0]], computations)
    return [None] * len(instruction.arrays)


def cycles(step: Executed) -> int:
    """Return the TPU compiler's estimate of an instruction; 0 where it gives none."""
    found = None if step.fused else re.search(r'"estimated_cycles":"(\d+)"', step.instruction.rest)
    return int(found[1]) if found else 0


def _is_collective(instruction: Instruction) -> bool:
    return instruction.opcode.removesuffix('-start') in TRAFFIC or _target(instruction) in _ASYNC_CALLS


def _target(instruction: Instruction) -> str:
    return instruction.attribute('custom_call_target').strip('"') if instruction.opcode == 'custom-call' else ''

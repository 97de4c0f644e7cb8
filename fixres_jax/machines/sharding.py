"""Where arrays live: one mesh with one axis, batches split over it, state replicated or split too."""

import collections
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fixres_jax.core.errors import UsageError, nearest

LAYOUTS = ('replicated', 'fsdp')
# Scalars below which splitting a leaf saves less memory than its gathering costs time.
FSDP_MIN_SIZE = 2**12


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Return a mesh of one axis, 'data', over the given devices or all of them, ordered by process and then by id.

    So a global array split over the axis is the hosts' rows one after the other, in the order of the hosts, as
    `data.pipeline` shares them out. `jax.make_mesh` follows the wires of a TPU slice instead, and its hosts' rows would
    lie interleaved.
    """
    devices = jax.devices() if devices is None else devices
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered), ('data',), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that keeps a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits the first axis, the examples, over the devices."""
    return NamedSharding(mesh, PartitionSpec('data'))


def place(tree: Any, mesh: Mesh, layout: str) -> Any:
    """Return the sharding of each leaf of a tree of arrays or of their shapes.

    Args:
      tree: parameters, optimizer state or a whole TrainState.
      mesh: the devices.
      layout: 'replicated', or 'fsdp': each leaf of at least `FSDP_MIN_SIZE` scalars is split on its largest axis that
        the devices divide, and gathered where it is used: see `jit`.

    Raises:
      UsageError: for another layout.
    """
    if layout not in LAYOUTS:
        raise UsageError(f'sharding={layout!r} is not one of {", ".join(LAYOUTS)}.{nearest(layout, LAYOUTS)}')

    def of_leaf(leaf):
        axes = [axis for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
        if layout == 'replicated' or not axes or math.prod(leaf.shape) < FSDP_MIN_SIZE:
            return replicated(mesh)
        axis = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, 'data'))

    return jax.tree.map(of_leaf, tree)


def jit(function: Callable[..., Any], mesh: Mesh, **options: Any) -> Callable[..., Any]:
    """Return `jax.jit` of a function that applies a network, with the mesh in its context.

    There the layers can ask for whole kernels (`models.devices.gather`), which the layout 'fsdp' needs: of a
    convolution with a part of a kernel on each device the compiler makes a loop that passes the parts around.
    """

    @functools.wraps(function)
    def on_mesh(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return jax.jit(on_mesh, **options)


def check_batch_size(batch_size: int, mesh: Mesh, name: str, num_parts: int = 1) -> None:
    """Raise UsageError unless each of the equal parts of a global batch can be split evenly over the mesh."""
    if num_parts < 1:
        raise UsageError(f'accumulate_steps={num_parts} is not a number of parts: it is at least 1.')
    if batch_size < 1 or batch_size % (num_parts * mesh.size):
        parts = f' in {num_parts} parts (accumulate_steps)' if num_parts > 1 else ''
        raise UsageError(
            f'{name}={batch_size} cannot be split over {mesh.size} devices{parts}: choose a positive multiple of '
            f'{num_parts * mesh.size}.'
        )


def round_up(batch_size: int, mesh: Mesh) -> int:
    """Return the smallest batch size of at least `batch_size` that the mesh splits evenly."""
    return -(-batch_size // mesh.size) * mesh.size


def put(tree: Any, mesh: Mesh) -> Any:
    """Make global arrays, split by example, from the examples that this host has read.

    The rows of all hosts stand one after the other, in the order of the hosts.
    """
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(by_example(mesh), x), tree)


def prefetch(batches: Iterable[Any], mesh: Mesh, size: int = 2) -> Iterator[tuple[Any, Any]]:
    """Yield (host batch, device batch), keeping `size` batches on their way to the devices.

    The first step does not wait for the batches after it: the lead grows in the steps that follow.
    """
    queue = collections.deque()
    for number, batch in enumerate(batches):
        queue.append((batch, put(batch, mesh)))
        if len(queue) > min(size, number // 2):
            yield queue.popleft()
    yield from queue


def hosts() -> dict[str, int]:
    """Return this process's share of the input, as the pipeline takes it."""
    return {'host': jax.process_index(), 'num_hosts': jax.process_count()}

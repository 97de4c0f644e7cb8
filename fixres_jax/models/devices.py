"""Layers on several devices: what they ask of the mesh in their context, and nothing where there is none."""

from collections.abc import Callable

import jax
from jax import lax
from jax.sharding import PartitionSpec


def gather(kernel: jax.Array) -> jax.Array:
    """Return a kernel that is whole on every device.

    Its parameter may lie in parts on the devices, see `machines.sharding`. To be called after the cast to the dtype
    that the kernel is used in: so the fewest bytes are moved.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return kernel
    return lax.with_sharding_constraint(kernel, PartitionSpec())


def by_device(convolve: Callable[..., jax.Array], x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return convolve(x, kernel), each device with its own images.

    For a convolution in groups XLA has to be told: on CPU and GPU it gathers the whole batch on every device otherwise
    (https://github.com/openxla/xla/issues/47945). So it has for a loop over images, as in `depthwise`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return convolve(x, kernel)
    images = PartitionSpec(mesh.axis_names)

    def on_one(x: jax.Array, kernel: jax.Array) -> jax.Array:
        # Each device's own kernel: so what comes back to it is added up over the devices, of a custom gradient too.
        return convolve(x, lax.pcast(kernel, mesh.axis_names, to='varying'))

    return jax.shard_map(on_one, in_specs=(images, PartitionSpec()), out_specs=images)(x, kernel)

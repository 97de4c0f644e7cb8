"""Layers on devices: what they ask of the mesh in their context, and what they do where there is none."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import AbstractDevice, AbstractMesh, PartitionSpec

# Devices of no platform that a function is given for, in a mesh without axes.
_NONE = AbstractMesh((), (), abstract_device=AbstractDevice('', None, platform='none'))


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


def on_none() -> contextlib.AbstractContextManager[None]:
    """Return a context for tracing a network for its parameters alone: `by_platform` takes the default.

    Their shapes and numbers are the same on every platform, and without the others' functions they are traced in half
    the time.
    """
    return jax.sharding.use_abstract_mesh(_NONE)


def by_platform(*operands: Any, default: Callable[..., Any], **others: Callable[..., Any]) -> Any:
    """Return what the function for the platform of the devices makes of the operands.

    Without a mesh in the context the platform is known only when the program is lowered, maybe for several platforms as
    `jax.export` does, and all functions are traced. That takes time: with a mesh the gradient of a ResNet-50 is traced
    in less than half of it.

    Args:
      operands: arrays.
      default: the function for all other platforms.
      others: platform, such as `cpu` or `tpu`, -> its function.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        return lax.platform_dependent(*operands, default=default, **others)
    return others.get(device.platform, default)(*operands)

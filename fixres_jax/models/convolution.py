"""Convolution over [B, H, W, C] with the padding of torch or of TensorFlow."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fixres_jax.core.errors import UsageError
from fixres_jax.models.depthwise import depthwise
from fixres_jax.models.devices import by_device, by_platform, gather
from fixres_jax.models.initializers import KAIMING, Initializer

# (pixels of the axis, side of the window, stride) -> pixels to add before and after
Padding = Callable[[int, int, int], tuple[int, int]]


def symmetric(size: int, side: int, stride: int) -> tuple[int, int]:
    """Return torch's usual padding of an odd window: half of it on both ends."""
    del size, stride
    return (side - 1) // 2, (side - 1) // 2


def same(size: int, side: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's padding: what -(-size // stride) outputs need, the odd pixel behind.

    At a stride above 1 it depends on the size of the image, and differs from `symmetric` where that is even.
    """
    total = max((-(-size // stride) - 1) * stride + side - size, 0)
    return total // 2, total - total // 2


def valid(size: int, side: int, stride: int) -> tuple[int, int]:
    """Return no padding."""
    del size, side, stride
    return 0, 0


# By the name that the option `padding` gives it.
PADDINGS: dict[str, Padding] = {'symmetric': symmetric, 'same': same, 'valid': valid}


def pads(x: jax.Array, sides: tuple[int, int], stride: int, padding: Padding) -> tuple[tuple[int, int], ...]:
    """Return the pixels before and after both axes of a map, and refuse one that is smaller than the window."""
    found = tuple(padding(size, side, stride) for size, side in zip(x.shape[1:3], sides, strict=True))
    for size, side, around in zip(x.shape[1:3], sides, found, strict=True):
        if size + sum(around) < side:
            raise UsageError(
                f'A map of {x.shape[1]}x{x.shape[2]} pixels has reached a window of {sides[0]}x{sides[1]}: the '
                'resolution is too small for this network. Give a larger one.'
            )
    return found


class Conv(nn.Module):
    """Convolve in the dtype of the input.

    Attributes:
      features: number of output channels.
      kernel_size: pixels of the square kernel's side, or (height, width).
      stride: of both axes.
      groups: of channels, as in ResNeXt; as many as channels make it depthwise.
      padding: such as `symmetric`.
      bias: whether each output channel has one.
      initializer: of the kernel.
    """

    features: int
    kernel_size: int | tuple[int, int]
    stride: int = 1
    groups: int = 1
    padding: Padding = dataclasses.field(kw_only=True)
    bias: bool = False
    initializer: Initializer = KAIMING

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        side = self.kernel_size
        height, width = (side, side) if isinstance(side, int) else side
        inputs = x.shape[-1]
        if self.features < 1 or inputs % self.groups or self.features % self.groups:
            raise UsageError(
                f'No convolution maps {inputs} channels to {self.features} in {self.groups} groups: this width of the '
                'model makes no network.'
            )
        kernel = self.param(
            'kernel', self.initializer, (height, width, inputs // self.groups, self.features), jnp.float32
        ).astype(x.dtype)
        kernel = gather(kernel)
        around = pads(x, (height, width), self.stride, self.padding)
        y = _apply(x, kernel, self.stride, around, self.groups)
        if not self.bias:
            return y
        bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
        return y + bias.reshape(1, 1, 1, -1).astype(x.dtype)


def _apply(x: jax.Array, kernel: jax.Array, stride: int, around: tuple, groups: int) -> jax.Array:
    """Convolve, by the program that is fast on the platform."""
    convolve = functools.partial(
        lax.conv_general_dilated,
        window_strides=(stride, stride),
        padding=around,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=groups,
    )
    if 1 < groups == x.shape[-1] == kernel.shape[-1]:
        on_cpu = functools.partial(by_device, functools.partial(depthwise, stride=stride, pads=around))
        return by_platform(x, kernel, cpu=on_cpu, default=convolve)

    def multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
        x = x[:, ::stride, ::stride]
        return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)

    if groups == 1 and kernel.shape[:2] == (1, 1) and not any(map(any, around)):
        # On two cores XLA:CPU's weight gradient of a 1x1 convolution runs at 11 GFLOP/s, of a product at 73. On
        # accelerators a convolution is fused with its neighbours and a product is not.
        return by_platform(x, kernel, cpu=multiply, default=convolve)
    elsewhere = functools.partial(by_device, convolve) if groups > 1 else convolve
    outputs = [(n + sum(p) - k) // stride + 1 for n, p, k in zip(x.shape[1:3], around, kernel.shape[:2], strict=True)]
    # Windows that do not overlap, of patch embeddings, are fast and have many places.
    if stride < max(kernel.shape[:2]) and _below(kernel.shape[:2], x.shape[1:3], outputs):
        by_patches = functools.partial(_multiply_patches, stride=stride, around=around, groups=groups)
        return by_platform(x, kernel, cpu=by_patches, default=elsewhere)
    return elsewhere(x, kernel)


def _below(window: tuple[int, ...], *maps: Sequence[int]) -> bool:
    """Whether one of the maps is smaller than a window along an axis."""
    return any(pixels < side for size in maps for pixels, side in zip(size, window, strict=True))


def _multiply_patches(x: jax.Array, kernel: jax.Array, stride: int, around: tuple, groups: int) -> jax.Array:
    """Convolve by one product of the kernel and everything that it meets, for maps smaller than it, or nearly so.

    XLA:CPU runs the convolution of such a map, and the gradient that comes from one, sixty times slower than others.
    """
    height, width, inputs, features = kernel.shape
    x = jnp.pad(x, ((0, 0), *around, (0, 0)))
    batch, rows, columns, _ = x.shape
    rows, columns = rows - height + 1, columns - width + 1
    places = [
        x[:, i : i + rows : stride, j : j + columns : stride].reshape(batch, -1, groups, inputs)
        for i in range(height)
        for j in range(width)
    ]
    patches = jnp.concatenate(places, axis=-1)
    kernel = kernel.reshape(height * width * inputs, groups, features // groups)
    y = jnp.einsum('bpgk,kgf->bpgf', patches, kernel)
    return y.reshape(batch, -(-rows // stride), -(-columns // stride), features)

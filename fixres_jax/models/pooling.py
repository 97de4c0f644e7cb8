"""Pooling over windows of [B, H, W, C]."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fixres_jax.models.convolution import Padding, pads
from fixres_jax.models.devices import by_platform

Around = tuple[tuple[int, int], tuple[int, int]]  # pixels before and after each axis


def max_pool(x: jax.Array, side: int, stride: int, padding: Padding, *, ceil_mode: bool = False) -> jax.Array:
    """Take the maximum over square windows; of equal values the first of a window has the gradient, as in torch.

    Args:
      x: [B, H, W, C].
      side: pixels of a window.
      stride: of both axes.
      padding: such as `symmetric`; what it adds is never the maximum.
      ceil_mode: give what remains at the end a window of its own, as torch's option of that name.
    """
    around = _with_remainder(x, side, stride, padding, ceil_mode)
    first = functools.partial(_first, side=side, stride=stride, around=around)

    def whole(x: jax.Array) -> jax.Array:
        return nn.max_pool(x, (side, side), strides=(stride, stride), padding=around)

    # The TPU has an instruction for the gradient. XLA:GPU keeps four indices of 32 bits a window for it, and on the CPU
    # the gradient below is 8 times faster than XLA's, if not in bfloat16, of which a CPU has no arithmetic.
    return by_platform(x, tpu=whole, cpu=lambda x: first(x.astype(jnp.float32)).astype(x.dtype), default=first)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _first(x: jax.Array, side: int, stride: int, around: Around) -> jax.Array:
    return _first_forward(x, side, stride, around)[0]


def _first_forward(
    x: jax.Array, side: int, stride: int, around: Around
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Return the maxima, and (uint8 places of the maxima in their windows, an empty array of the height and width)."""
    padded = jnp.pad(x, ((0, 0), *around, (0, 0)), constant_values=-jnp.inf)
    rows, columns = ((size - side) // stride + 1 for size in padded.shape[1:3])
    shape = (x.shape[0], rows, columns, x.shape[3])
    best, place = jnp.full(shape, -jnp.inf, x.dtype), jnp.zeros(shape, jnp.uint8)
    for number, (row, column) in enumerate(_window(side)):
        below, right = row + stride * (rows - 1) + 1, column + stride * (columns - 1) + 1
        value = padded[:, row:below:stride, column:right:stride]
        larger = (value > best) | jnp.isnan(value)
        best, place = jnp.where(larger, value, best), jnp.where(larger, jnp.uint8(number), place)
    return best, (place, jnp.zeros((0, *x.shape[1:3])))


def _first_backward(
    side: int, stride: int, around: Around, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array]:
    place, (_, height, width) = kept[0], kept[1].shape
    _, rows, columns, _ = place.shape
    total = 0.0
    for number, (row, column) in enumerate(_window(side)):
        part = jnp.where(place == number, gradient.astype(jnp.float32), 0.0)
        above, left = row - around[0][0], column - around[1][0]
        below, right = height - above - (stride * (rows - 1) + 1), width - left - (stride * (columns - 1) + 1)
        spread = ((0, 0, 0), (above, below, stride - 1), (left, right, stride - 1), (0, 0, 0))
        total += lax.pad(part, 0.0, spread)
    return (total.astype(gradient.dtype),)


def _window(side: int) -> tuple[tuple[int, int], ...]:
    return tuple((row, column) for row in range(side) for column in range(side))


_first.defvjp(_first_forward, _first_backward)


def avg_pool(
    x: jax.Array,
    side: int,
    stride: int,
    padding: Padding,
    *,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> jax.Array:
    """Take the mean over square windows; arguments as in `max_pool`.

    Args:
      count_include_pad: divide by all pixels of a window, those that `padding` added too, as torch's option; what
        `ceil_mode` adds never counts.
    """
    around = _with_remainder(x, side, stride, padding, ceil_mode)
    ones = jnp.ones((1, *x.shape[1:3], 1), jnp.float32)
    if count_include_pad:
        counted = pads(x, (side, side), stride, padding)
        ones = jnp.pad(ones, ((0, 0), *counted, (0, 0)), constant_values=1.0)
        inside = tuple((0, all_of[1] - some[1]) for all_of, some in zip(around, counted, strict=True))
    else:
        inside = around
    window, strides = (1, side, side, 1), (1, stride, stride, 1)
    number = lax.reduce_window(ones, 0.0, lax.add, window, strides, ((0, 0), *inside, (0, 0)))
    total = lax.reduce_window(x.astype(jnp.float32), 0.0, lax.add, window, strides, ((0, 0), *around, (0, 0)))
    return (total / number).astype(x.dtype)


def adaptive_avg_pool(x: jax.Array, rows: int, columns: int) -> jax.Array:
    """Take the means over as many windows as are asked for, as torch does: where there are fewer pixels, some twice.

    Args:
      x: [B, H, W, C].
      rows, columns: of the map that is returned.
    """
    down, across = (_shares(size, windows) for size, windows in zip(x.shape[1:3], (rows, columns), strict=True))
    means = jnp.einsum('bhwc,hi,wj->bijc', x.astype(jnp.float32), down, across, precision='highest')
    return means.astype(x.dtype)


def _shares(size: int, windows: int) -> np.ndarray:
    """Return the weight of each pixel of an axis in each window: float32[size, windows]."""
    pixels, number = np.arange(size)[:, None], np.arange(windows)
    first, behind = number * size // windows, -(-(number + 1) * size // windows)
    return np.float32((first <= pixels) & (pixels < behind)) / np.float32(behind - first)


def _with_remainder(
    x: jax.Array, side: int, stride: int, padding: Padding, ceil_mode: bool
) -> tuple[tuple[int, int], ...]:
    """Return the padding, with as much more behind as torch's ceil_mode gives a window of its own."""
    found = pads(x, (side, side), stride, padding)
    if not ceil_mode:
        return found
    around = []
    for size, (before, behind) in zip(x.shape[1:3], found, strict=True):
        outputs = -(-(size + before + behind - side) // stride) + 1
        if (outputs - 1) * stride >= size + before:  # a window of padding alone is none
            outputs -= 1
        around.append((before, max(behind, (outputs - 1) * stride + side - size - before)))
    return tuple(around)

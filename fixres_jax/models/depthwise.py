"""Depthwise convolution on CPU: shifted multiply-adds, which XLA fuses into loops over whole vectors.

XLA:CPU runs a convolution of one channel a group about forty times slower, and its gradient a hundred times.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """Convolve each channel with its own kernel.

    Args:
      x: [B, H, W, C].
      kernel: [h, w, 1, C], of the same dtype.
      stride: of both axes.
      pads: zeros before and after each axis.

    Returns:
      [B, H', W', C] of the same dtype; sums are float32.
    """
    return _multiply_add(_pad(x, pads), kernel, stride)


def _forward(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return depthwise(x, kernel, stride, pads), (x, kernel)


def _backward(
    stride: int, pads: Pads, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return _of_input(gradient, kernel, stride, pads, x.shape), _of_kernel(x, gradient, stride, pads, kernel)


depthwise.defvjp(_forward, _backward)


def _pad(x: jax.Array, pads: Pads) -> jax.Array:
    # Written out once: fused into the shifts, the test for the border and what came before run once a shift.
    return lax.optimization_barrier(jnp.pad(x, ((0, 0), *pads, (0, 0))))


def _multiply_add(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Add up the shifts of a padded map, each times its row of the kernel."""
    height, width, _, _ = kernel.shape
    rows, columns = (x.shape[1] - height) // stride + 1, (x.shape[2] - width) // stride + 1
    total = 0.0
    for i in range(height):
        for j in range(width):
            shift = x[:, i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
            total = total + _times(shift, kernel, i, j)
    return total.astype(x.dtype)


def _times(x: jax.Array, kernel: jax.Array, i: int, j: int) -> jax.Array:
    return x.astype(jnp.float32) * kernel[i, j].reshape(1, 1, 1, -1).astype(jnp.float32)


def _of_input(gradient: jax.Array, kernel: jax.Array, stride: int, pads: Pads, shape: tuple[int, ...]) -> jax.Array:
    """Return the gradient of the input.

    Of its rows every `stride`-th is reached through the same rows of the kernel, and so are its columns: a part of the
    map for each, made of shifts that are dense, and then all parts interleaved.
    """
    batch, *sides, channels = shape
    sizes = [-(-side // stride) for side in sides]  # of the parts
    taps, around = [], []
    for size, steps, side, (before, _) in zip(sizes, gradient.shape[1:3], kernel.shape[:2], pads, strict=True):
        front = max(0, -((before - side + 1) // stride))
        taps.append([_taps(part + before, side, stride, front) for part in range(stride)])
        around.append((front, max(0, (stride - 1 + before) // stride + size - steps)))
    gradient = _pad(gradient, tuple(around))

    def part(down: list[tuple[int, int]], across: list[tuple[int, int]]) -> jax.Array:
        total = jnp.zeros((batch, *sizes, channels), jnp.float32)
        for i, row in down:
            for j, column in across:
                shift = gradient[:, row : row + sizes[0], column : column + sizes[1]]
                total = total + _times(shift, kernel, i, j)
        return total.astype(gradient.dtype)

    parts = jnp.stack([jnp.stack([part(down, across) for across in taps[1]], 3) for down in taps[0]], 2)
    whole = parts.reshape(batch, *(size * stride for size in sizes), channels)
    return whole[:, : sides[0], : sides[1]]


def _taps(place: int, side: int, stride: int, front: int) -> list[tuple[int, int]]:
    """Return (row of the kernel, row of the padded gradient) of all that reach a row of the padded input."""
    return [(i, (place - i) // stride + front) for i in range(side) if (place - i) % stride == 0]


def _of_kernel(x: jax.Array, gradient: jax.Array, stride: int, pads: Pads, kernel: jax.Array) -> jax.Array:
    """Return the gradient of the kernel: for each of its places the sum over positions of shift times gradient.

    One row of one image after the other, so that what a step reads and the sums that it adds to, one for each column,
    stay in the cache: up to six times as fast as sums over columns too.
    """
    height, width, _, channels = kernel.shape
    x = _pad(x, pads)
    batch, rows, columns, _ = gradient.shape
    places = [(i, j) for i in range(height) for j in range(width)]

    def products(step: jax.Array | int) -> list[jax.Array]:
        image, row = step // rows, step % rows
        window = lax.dynamic_slice(x, (image, row * stride, 0, 0), (1, height, *x.shape[2:]))[0]
        across = lax.dynamic_slice(gradient, (image, row, 0, 0), (1, 1, columns, channels))[0, 0].astype(jnp.float32)
        end = (columns - 1) * stride + 1
        return [window[i, j : j + end : stride].astype(jnp.float32) * across for i, j in places]

    def add(step: jax.Array, totals: list[jax.Array]) -> list[jax.Array]:
        return [total + product for total, product in zip(totals, products(step), strict=True)]

    totals = lax.fori_loop(1, batch * rows, add, products(0))
    return jnp.stack(totals).sum(1).reshape(kernel.shape).astype(kernel.dtype)

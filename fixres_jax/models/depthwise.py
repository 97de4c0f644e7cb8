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
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))


def _multiply_add(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Add up the shifts of a padded map, each times its row of the kernel."""
    height, width, _, channels = kernel.shape
    rows, columns = (x.shape[1] - height) // stride + 1, (x.shape[2] - width) // stride + 1
    total = 0.0
    for i in range(height):
        for j in range(width):
            shift = x[:, i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
            total = total + shift.astype(jnp.float32) * kernel[i, j].reshape(1, 1, 1, channels).astype(jnp.float32)
    return total.astype(x.dtype)


def _of_input(gradient: jax.Array, kernel: jax.Array, stride: int, pads: Pads, shape: tuple[int, ...]) -> jax.Array:
    """Return the gradient of the input: the same with the kernel turned round, on a gradient spread by the stride."""
    around = []
    for size, side, steps, (before, _) in zip(shape[1:3], kernel.shape[:2], gradient.shape[1:3], pads, strict=True):
        front = side - 1 - before
        behind = size + side - 1 - front - ((steps - 1) * stride + 1)
        around.append((front, behind, stride - 1))
    spread = lax.pad(gradient, jnp.zeros((), gradient.dtype), ((0, 0, 0), *around, (0, 0, 0)))
    return _multiply_add(spread, kernel[::-1, ::-1], 1)


def _of_kernel(x: jax.Array, gradient: jax.Array, stride: int, pads: Pads, kernel: jax.Array) -> jax.Array:
    """Return the gradient of the kernel: for each of its places the sum over positions of shift times gradient.

    Row by row of the gradient, so that what a step reads stays in the cache; images stay on their devices.
    """
    height, width, _, channels = kernel.shape
    x = _pad(x, pads)
    columns = gradient.shape[2]

    def add(row: int, total: jax.Array) -> jax.Array:
        window = lax.dynamic_slice_in_dim(x, row * stride, height, axis=1).astype(jnp.float32)
        across = lax.dynamic_index_in_dim(gradient, row, axis=1, keepdims=False).astype(jnp.float32)
        products = [
            (window[:, i, j : j + (columns - 1) * stride + 1 : stride] * across).sum(1)
            for i in range(height)
            for j in range(width)
        ]
        return total + jnp.stack(products)

    total = lax.fori_loop(0, gradient.shape[1], add, jnp.zeros((height * width, len(x), channels), jnp.float32))
    return total.sum(1).reshape(kernel.shape).astype(kernel.dtype)

"""Random erasing: a box of some images is filled with zeros or with noise. Source: Zhong et al. 2017, as in timm."""

import math

import jax
import jax.numpy as jnp

AREA = (0.02, 1 / 3)  # of the image
ASPECT = (0.3, 1 / 0.3)  # height over width
ATTEMPTS = 10  # at a box that fits; then the image stays
FILLS = ('zero', 'noise')


def erase_some(images: jax.Array, key: jax.Array, probability: float, fill: str) -> jax.Array:
    """Erase a box of each image with a probability.

    Args:
      images: float32[B, H, W, C], normalized: zero is the mean colour.
      key: of the draws.
      probability: of an image.
      fill: of `FILLS`; noise is of the normal distribution, another value of each pixel and channel.
    """
    which, boxes, noise = jax.random.split(key, 3)
    box = draw(boxes, len(images), images.shape[1:3])
    erased = jax.random.uniform(which, (len(images), 1)) < probability
    values = jax.random.normal(noise, images.shape) if fill == 'noise' else jnp.zeros_like(images)
    return erase(images, jnp.where(erased, box, 0), values)


def erase(images: jax.Array, box: jax.Array, values: jax.Array) -> jax.Array:
    """Replace what is in a box, int32[B, 4] of (top, left, height, width), by values of the shape of the images."""
    _, height, width, _ = images.shape
    top, left, rows, columns = (edge[:, None] for edge in box.T)
    y, x = jnp.arange(height)[None, :], jnp.arange(width)[None, :]
    inside = ((y >= top) & (y < top + rows))[:, :, None] & ((x >= left) & (x < left + columns))[:, None, :]
    return jnp.where(inside[..., None], values, images)


def draw(key: jax.Array, count: int, size: tuple[int, int]) -> jax.Array:
    """Draw boxes, int32[count, 4] of (top, left, height, width): the first of some attempts that fits, or an empty one.

    Args:
      key: of the draws.
      count: how many.
      size: (height, width) of the images.
    """
    keys, shape, (height, width) = jax.random.split(key, 4), (count, ATTEMPTS), size
    area = jax.random.uniform(keys[0], shape, minval=AREA[0], maxval=AREA[1]) * height * width
    low, high = map(math.log, ASPECT)
    aspect = jnp.exp(jax.random.uniform(keys[1], shape, minval=low, maxval=high))
    rows, columns = (jnp.round(jnp.sqrt(side)).astype(jnp.int32) for side in (area * aspect, area / aspect))
    fits = (rows < height) & (columns < width)
    first = jnp.argmax(fits, axis=1)[:, None]
    rows, columns = (jnp.where(fits, side, 0) for side in (rows, columns))
    rows, columns = (jnp.take_along_axis(side, first, axis=1)[:, 0] for side in (rows, columns))
    top = jax.random.randint(keys[2], (count,), 0, height - rows + 1)
    left = jax.random.randint(keys[3], (count,), 0, width - columns + 1)
    return jnp.stack([top, left, rows, columns], axis=-1)

"""How the parameters of a fresh network are drawn: as numbers in a row, which then take the shape of the leaf.

The numbers are those that the shape itself would get, because `jax.random` goes by an element's place. XLA's compiler
for CPUs unrolls loops over short axes: drawing a kernel [3, 3, 16, 16] took it 7 seconds, and 2,304 numbers 0.4.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Initializer = nn.initializers.Initializer


def in_a_row(draw: Initializer) -> Initializer:
    """Return an initializer that draws independent numbers without regard to the shape."""

    def initialize(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        return draw(key, (math.prod(shape),), dtype).reshape(shape)

    return initialize


def uniform(bound: float) -> Initializer:
    """Draw from U(-bound, bound)."""
    return in_a_row(lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound))


def normal(stddev: float) -> Initializer:
    """Draw from N(0, stddev^2)."""
    return in_a_row(nn.initializers.normal(stddev))


def truncated_normal(stddev: float) -> Initializer:
    """Draw from N(0, stddev^2) cut off at two standard deviations, which makes it narrower."""
    return in_a_row(nn.initializers.truncated_normal(stddev))


def fan_out(scale: float, draw: Initializer) -> Initializer:
    """Draw a kernel, float32[..., inputs, outputs], of variance scale / (outputs x positions).

    Args:
      scale: 2 before a ReLU (He et al. 2015).
      draw: of numbers of variance one.
    """

    def initialize(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        *positions, _, outputs = shape
        return draw(key, shape, dtype) * np.sqrt(np.float32(scale / (outputs * math.prod(positions))))

    return initialize


UNIT_NORMAL = normal(1.0)
# Cutting off at two standard deviations leaves 0.87962566 of one.
UNIT_TRUNCATED_NORMAL = truncated_normal(1 / 0.87962566103423978)
# He et al. 2015, as torchvision and timm initialise convolutions: a group counts as a whole network's worth of outputs.
KAIMING = fan_out(2.0, UNIT_NORMAL)
# As timm initialises networks with LayerNorm.
TRUNCATED = truncated_normal(0.02)

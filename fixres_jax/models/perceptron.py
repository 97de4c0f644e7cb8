"""What networks with LayerNorm are built of: linear layers, their perceptron, the scale of a branch."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fixres_jax.models.devices import gather
from fixres_jax.models.initializers import TRUNCATED


class Linear(nn.Module):
    """Map the channels of each position in the dtype of the input."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param('kernel', TRUNCATED, (x.shape[-1], self.features), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (self.features,), jnp.float32)
        y = jnp.matmul(x, gather(kernel.astype(x.dtype)))
        return y + bias.reshape((1,) * (x.ndim - 1) + (-1,)).astype(x.dtype)


def linear_rates(rate: float, depth: int) -> list[float]:
    """Return the rates of drop path of a network's blocks: from 0 in the first to `rate` in the last.

    >>> linear_rates(0.2, 3)
    [0.0, 0.1, 0.2]
    """
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


class LayerScale(nn.Module):
    """Scale each channel of a branch by a number that is learned (Touvron et al. 2021, CaiT)."""

    initial: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gamma = self.param('gamma', nn.initializers.constant(self.initial), (x.shape[-1],), jnp.float32)
        return x * gamma.reshape((1,) * (x.ndim - 1) + (-1,)).astype(x.dtype)


class ResponseNorm(nn.Module):
    """Scale each channel of an image by its norm over all positions, relative to those of the other channels.

    Woo et al. 2023, ConvNeXt V2: global response normalization.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param('scale', nn.initializers.zeros, (x.shape[-1],), jnp.float32).reshape(1, 1, 1, -1)
        bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],), jnp.float32).reshape(1, 1, 1, -1)
        values = x.astype(jnp.float32)
        energy = jnp.square(values).sum((1, 2), keepdims=True)
        silent = energy == 0  # The root has no gradient there; torch takes zero.
        norm = jnp.where(silent, 0.0, jnp.sqrt(jnp.where(silent, 1.0, energy)))
        relative = norm / (norm.mean(-1, keepdims=True) + self.epsilon)
        return (values + scale * (values * relative) + bias).astype(x.dtype)


class Perceptron(nn.Module):
    """Map the channels of each position to four times as many and back.

    Attributes:
      response_norm: whether a `ResponseNorm` stands before the way back.
    """

    response_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.gelu(Linear(4 * x.shape[-1], name='fc1')(x), approximate=False)
        if self.response_norm:
            y = ResponseNorm(name='grn')(y)
        return Linear(x.shape[-1], name='fc2')(y)

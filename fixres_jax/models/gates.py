"""Gates: what scales the channels of a map by what the whole map shows."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fixres_jax.models import initializers
from fixres_jax.models.convolution import Conv, valid
from fixres_jax.models.devices import gather


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate that two 1x1 convolutions make of the mean over all positions.

    Attributes:
      squeezed: channels between the two.
      names: of the two.
      activation: between them.
      gate: after them.
    """

    squeezed: int
    names: tuple[str, str] = ('conv_reduce', 'conv_expand')
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    gate: Callable[[jax.Array], jax.Array] = nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        mean = x.astype(jnp.float32).mean((1, 2), keepdims=True).astype(x.dtype)
        y = self.activation(Conv(self.squeezed, 1, padding=valid, bias=True, name=self.names[0])(mean))
        return x * self.gate(Conv(x.shape[-1], 1, padding=valid, bias=True, name=self.names[1])(y))


class ChannelAttention(nn.Module):
    """Scale each channel by a gate that its neighbours make together, by a convolution over the channels' means.

    Wang et al. 2020, ECA: the window is the odd number that follows from (log2(channels) + 1) / 2.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        side = int((math.log2(x.shape[-1]) + 1) / 2)
        side = max(side + (side + 1) % 2, 3)
        mean = x.astype(jnp.float32).mean((1, 2))[:, :, None]
        gate = ChannelConv(side, name='conv')(mean).reshape(-1, 1, 1, x.shape[-1])
        return x * nn.sigmoid(gate).astype(x.dtype)


class ChannelConv(nn.Module):
    """Convolve over [B, C, 1] without a bias, padded with zeros to the same length."""

    side: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        draw = initializers.uniform(self.side**-0.5)  # as torch does with one channel
        kernel = gather(self.param('kernel', draw, (self.side, 1, 1), jnp.float32))
        around = ((self.side // 2, self.side // 2),)
        return lax.conv_general_dilated(x, kernel, (1,), around, dimension_numbers=('NWC', 'WIO', 'NWC'))

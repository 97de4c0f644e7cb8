"""ResNet with BatchNorm and ReLU before the convolutions (He et al. 2016), with timm's structure and names ('norm')."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fixres_jax.models import layers
from fixres_jax.models.architecture import HALF, Architecture
from fixres_jax.models.stages import make_stage, rates_of_stages

BatchNorm = functools.partial(layers.BatchNorm, epsilon=1e-5, momentum=0.1)
Conv = functools.partial(layers.Conv, padding=layers.symmetric)


class Named(nn.Module):
    """A convolution as 'conv' in a module of its own."""

    features: int
    kernel_size: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Conv(self.features, self.kernel_size, self.stride, name='conv')(x)


class Block(nn.Module):
    """BatchNorm, ReLU and a convolution, thrice (1x1, 3x3 with the stride, 1x1), around a shortcut.

    Attributes:
      features: output channels, four times those of the 3x3 convolution.
      stride: of it.
      bn_group_size: as in `layers.BatchNorm`.
      drop_path: rate of `layers.DropPath` on the branch.
    """

    features: int
    stride: int
    bn_group_size: int | None
    drop_path: float

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        inner = self.features // 4
        shortcut = None
        if x.shape[-1] != self.features:
            shortcut = Named(self.features, 1, self.stride, name='downsample')
            if self.is_initializing():
                shortcut(x)  # torch lists it first
        y = nn.relu(BatchNorm(self.bn_group_size, name='norm1')(x, mode))
        if shortcut:
            x = shortcut(y)
        y = Conv(inner, 1, name='conv1')(y)
        y = nn.relu(BatchNorm(self.bn_group_size, name='norm2')(y, mode))
        y = Conv(inner, 3, self.stride, name='conv2')(y)
        y = nn.relu(BatchNorm(self.bn_group_size, name='norm3')(y, mode))
        y = Conv(self.features, 1, name='conv3')(y)
        return x + layers.DropPath(self.drop_path, name='drop_path')(y, mode)


class Blocks(nn.Module):
    """The blocks of a stage, as 'blocks' in a module of their own."""

    depth: int
    stride: int
    options: tuple[tuple[str, Any], ...]
    drop_paths: tuple[float, ...]
    remat: str

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        options, others = dict(self.options), {'drop_paths': self.drop_paths, 'name': 'blocks'}
        return make_stage(Block, self.depth, self.stride, options, self.remat, **others)(x, mode)


class Stages(nn.Module):
    """Stages '0', '1', ... of a network."""

    depths: tuple[int, ...]
    width: int
    bn_group_size: int | None
    drop_path: float
    remat: str

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        rates = rates_of_stages(self.drop_path, self.depths)
        for i, depth in enumerate(self.depths):
            options = (('features', 4 * self.width * 2**i), ('bn_group_size', self.bn_group_size))
            x = Blocks(depth, 1 if i == 0 else 2, options, rates[i], self.remat, name=str(i))(x, mode)
        return x


class ResNetV2(nn.Module):
    """Classify images of 32 pixels a side or more; attributes as in `resnet.ResNet`."""

    depths: tuple[int, ...]
    num_classes: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: Any = jnp.float32
    bn_group_size: int | None = 64
    remat: str = ''
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, images: jax.Array, mode: layers.Mode) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and what they were computed from, as `resnet.ResNet` does."""
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        x = Named(self.width, 7, 2, name='stem')(x)
        x = layers.max_pool(x, 3, 2, layers.symmetric)
        x = Stages(self.depths, self.width, self.bn_group_size, self.drop_path, self.remat, name='stages')(x, mode)
        x = nn.relu(BatchNorm(self.bn_group_size, name='norm')(x, mode))
        embedding = x.astype(jnp.float32).mean((1, 2))
        return layers.Head(self.num_classes, name='head')(embedding), {'features': x, 'embedding': embedding}


ROWS = {
    'resnetv2_50': Architecture(
        functools.partial(ResNetV2, (3, 4, 6, 3)), 'head/fc', 'stem/conv', 'norm',
        mean=HALF, std=HALF, interpolation='bicubic', resize_ratio=1 / 0.95, convolution_head=True,
        options={'drop_path': 0.0},
        note='statistics of the BatchNorm before the pool, with nothing but a ReLU between, and the classifier',
    ),
}  # fmt: skip

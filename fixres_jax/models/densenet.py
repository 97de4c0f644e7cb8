"""DenseNet with timm's structure and names ('features/denseblock4/denselayer16/norm2')."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fixres_jax.core.errors import UsageError
from fixres_jax.models import layers
from fixres_jax.models.architecture import Architecture

STEM = 64
BOTTLENECK = 4  # channels between the two convolutions of a layer over those that it adds
Conv = functools.partial(layers.Conv, padding=layers.symmetric)


class DenseLayer(nn.Module):
    """Make a few new channels of all that there are: BatchNorm, ReLU and convolution, 1x1 and then 3x3."""

    norm: Callable[..., nn.Module]
    growth: int

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        y = Conv(BOTTLENECK * self.growth, 1, name='conv1')(nn.relu(self.norm(name='norm1')(x, mode)))
        return Conv(self.growth, 3, name='conv2')(nn.relu(self.norm(name='norm2')(y, mode)))


class DenseBlock(nn.Module):
    """Layers 'denselayer1', 'denselayer2', ..., each of which adds its channels behind those that it takes."""

    norm: Callable[..., nn.Module]
    growth: int
    depth: int
    remat: str

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        layer = nn.remat(DenseLayer) if self.remat == 'block' else DenseLayer
        for number in range(1, self.depth + 1):
            new = layer(self.norm, self.growth, name=f'denselayer{number}')(x, mode)
            x = jnp.concatenate([x, new], -1)
        return x


class Transition(nn.Module):
    """Halve the channels and the sides of the map."""

    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        x = nn.relu(self.norm(name='norm')(x, mode))
        return layers.avg_pool(Conv(x.shape[-1] // 2, 1, name='conv')(x), 2, 2, layers.valid)


class Features(nn.Module):
    """All layers before the pool; attributes as in `DenseNet`."""

    norm: Callable[..., nn.Module]
    depths: tuple[int, ...]
    width: int
    remat: str

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        x = nn.relu(self.norm(name='norm0')(Conv(self.width, 7, 2, name='conv0')(x), mode))
        x = layers.max_pool(x, 3, 2, layers.symmetric)
        block = nn.remat(DenseBlock) if self.remat == 'stage' else DenseBlock
        for number, depth in enumerate(self.depths, 1):
            if number > 1:
                x = Transition(self.norm, name=f'transition{number - 1}')(x, mode)
            x = block(self.norm, self.width // 2, depth, self.remat, name=f'denseblock{number}')(x, mode)
        return nn.relu(self.norm(name='norm5')(x, mode))


class DenseNet(nn.Module):
    """Classify images of 32 pixels a side or more.

    Attributes:
      depths: layers of each of the four blocks.
      num_classes: number of logits.
      width: channels of the stem; each layer adds half as many.
      mean, std: of the RGB channels, in [0, 1].
      dropout: rate of numbers of the embedding left out in training.
      dtype: of the activations; parameters, statistics, embeddings and logits are float32.
      bn_group_size: number of images that share BatchNorm statistics; None for the whole batch.
      remat: as in `resnet.ResNet`; a block is a layer, and a stage a block, in the words of the paper.
    """

    depths: tuple[int, ...]
    num_classes: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dropout: float
    dtype: Any = jnp.float32
    bn_group_size: int | None = 64
    remat: str = ''

    @nn.compact
    def __call__(self, images: jax.Array, mode: layers.Mode) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and what they were computed from; arguments and values as `resnet.ResNet`."""
        norm = functools.partial(layers.BatchNorm, self.bn_group_size, epsilon=1e-5, momentum=0.1)
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        x = Features(norm, self.depths, self.width, self.remat, name='features')(x, mode)
        embedding = x.astype(jnp.float32).mean((1, 2))
        kept = layers.Dropout(self.dropout, name='dropout')(embedding, mode)
        logits = layers.Classifier(self.num_classes, name='classifier')(kept)
        return logits, {'features': x, 'embedding': embedding}


def create_densenet(depths: tuple[int, ...], *, width: int, **options: Any) -> DenseNet:
    """Create a network of the family; raise UsageError for a width that makes none.

    Args:
      depths: layers of each of the four blocks.
      width: channels of the stem.
      **options: the other attributes of `DenseNet`.
    """
    if width < 2:
        raise UsageError(f'width={width} makes no network: a layer adds half as many channels. It is at least 2.')
    return DenseNet(depths, width=width, **options)


def _row(*depths: int) -> Architecture:
    build = functools.partial(create_densenet, depths)
    return Architecture(
        build, 'classifier', 'features/conv0', 'features/norm5', width=STEM, options={'dropout': 0.0},
        interpolation='bicubic', resize_ratio=1 / 0.875, note=NOTE,
    )  # fmt: skip


NOTE = 'statistics of the BatchNorm straight before the pool, and the classifier'
# Huang et al. 2017, table 1.
ROWS = {'densenet121': _row(6, 12, 24, 16), 'densenet169': _row(6, 12, 32, 32)}

"""VGG with BatchNorm, with timm's structure and names ('features/41', 'pre_logits/fc1', 'head/fc')."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fixres_jax.models import layers
from fixres_jax.models.architecture import Architecture

STEM = 64
HIDDEN = 4096  # outputs of the two fully connected layers
SIDE = 7  # of the map that the first of them takes
# Simonyan and Zisserman 2015, table 1, column D: convolutions and channels of each stage.
VGG16 = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


class Features(nn.Module):
    """Stages of 3x3 convolutions with BatchNorm and ReLU, a pool behind each; layers are counted through."""

    stages: tuple[tuple[int, int], ...]
    width: int
    bn_group_size: int | None

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        number = 0
        for depth, channels in self.stages:
            for _ in range(depth):
                features = channels * self.width // STEM
                x = layers.Conv(features, 3, padding=layers.symmetric, bias=True, name=str(number))(x)
                norm = layers.BatchNorm(self.bn_group_size, epsilon=1e-5, momentum=0.1, name=str(number + 1))
                x = nn.relu(norm(x, mode))
                number += 3  # the ReLU counts
            x = layers.max_pool(x, 2, 2, layers.valid)
            number += 1
        return x


class PreLogits(nn.Module):
    """The fully connected layers, as convolutions over maps of 7x7 or more.

    A smaller map is stretched to 7x7 first, by means over windows that overlap.

    Attributes:
      hidden: output channels of both.
      dropout: rate of numbers left out between them, where the whole network trains.
    """

    hidden: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        rows, columns = (max(side, SIDE) for side in x.shape[1:3])
        if (rows, columns) != x.shape[1:3]:
            x = layers.adaptive_avg_pool(x, rows, columns)
        conv = functools.partial(layers.Conv, self.hidden, padding=layers.valid, bias=True)
        x = nn.relu(conv(SIDE, name='fc1')(x))
        trunk = dataclasses.replace(mode, dropout=mode.drop_path)  # it rests in a frozen trunk
        x = layers.Dropout(self.dropout, name='drop')(x, trunk)
        return nn.relu(conv(1, name='fc2')(x))


class Head(nn.Module):
    """Dropout and the classifier."""

    num_classes: int
    dropout: float

    @nn.compact
    def __call__(self, embedding: jax.Array, mode: layers.Mode) -> jax.Array:
        kept = layers.Dropout(self.dropout, name='drop')(embedding, mode)
        return layers.Classifier(self.num_classes, name='fc')(kept)


class VGG(nn.Module):
    """Classify images of 32 pixels a side or more.

    Attributes:
      stages: convolutions and channels of each, for a `width` of 64.
      num_classes: number of logits.
      width: channels of the stem, to which all others are in proportion.
      mean, std: of the RGB channels, in [0, 1].
      dropout: rate of numbers left out in training, of the embedding and, where the whole network trains, of what the
        first fully connected layer gives out.
      dtype: of the activations; parameters, statistics, embeddings and logits are float32.
      bn_group_size: number of images that share BatchNorm statistics; None for the whole batch.
      remat: whose activations the backward pass computes again: '' nothing's, 'stage' all those before the fully
        connected layers.
    """

    stages: tuple[tuple[int, int], ...]
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
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        make = nn.remat(Features) if self.remat == 'stage' else Features
        x = make(self.stages, self.width, self.bn_group_size, name='features')(x, mode)
        x = PreLogits(HIDDEN * self.width // STEM, self.dropout, name='pre_logits')(x, mode)
        embedding = x.astype(jnp.float32).mean((1, 2))
        logits = Head(self.num_classes, self.dropout, name='head')(embedding, mode)
        return logits, {'features': x, 'embedding': embedding}


NOTE = (
    'statistics of the BatchNorm after the last convolution, and the classifier; two fully connected layers stand '
    'between them and stay as they are'
)
ROWS = {
    'vgg16_bn': Architecture(
        functools.partial(VGG, VGG16), 'head/fc', 'features/0', 'features/41', width=STEM, options={'dropout': 0.5},
        remat=('', 'stage'), note=NOTE,
    ),
}  # fmt: skip

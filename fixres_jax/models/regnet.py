"""RegNet X and Y (Radosavovic et al. 2020) with timm's structure and names ('s4/b2/conv3/bn')."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fixres_jax.models import layers
from fixres_jax.models.architecture import Architecture
from fixres_jax.models.stages import make_stage

BatchNorm = functools.partial(layers.BatchNorm, epsilon=1e-5, momentum=0.1)
Conv = functools.partial(layers.Conv, padding=layers.symmetric)
STEM = 32


class ConvNorm(nn.Module):
    """A convolution and a BatchNorm."""

    features: int
    kernel_size: int
    stride: int = 1
    groups: int = 1
    bn_group_size: int | None = dataclasses.field(kw_only=True)

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        x = Conv(self.features, self.kernel_size, self.stride, self.groups, name='conv')(x)
        return BatchNorm(self.bn_group_size, name='bn')(x, mode)


class Block(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions of equal channels around a shortcut.

    Attributes:
      features: channels.
      groups: of the 3x3 convolution.
      squeeze: channels between the two convolutions of the gate over those that enter the block; 0 for no gate.
      stride: of the 3x3 convolution.
      bn_group_size: as in `layers.BatchNorm`.
    """

    features: int
    groups: int
    squeeze: float
    stride: int
    bn_group_size: int | None

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        conv_norm = functools.partial(ConvNorm, self.features, bn_group_size=self.bn_group_size)
        y = nn.relu(conv_norm(1, name='conv1')(x, mode))
        y = nn.relu(conv_norm(3, self.stride, self.groups, name='conv2')(y, mode))
        if self.squeeze:
            y = layers.SqueezeExcite(round(x.shape[-1] * self.squeeze), ('fc1', 'fc2'), name='se')(y)
        y = conv_norm(1, name='conv3')(y, mode)
        if self.stride > 1 or x.shape[-1] != self.features:
            x = conv_norm(1, self.stride, name='downsample')(x, mode)
        return nn.relu(x + y)


class RegNet(nn.Module):
    """Classify images of 32 pixels a side or more.

    Attributes:
      depths: number of blocks of each of the four stages.
      features: their channels, for a `width` of 32.
      group: channels of a group of the 3x3 convolutions, likewise.
      squeeze: as in `Block`.
      num_classes: number of logits.
      width: channels of the stem, to which all others are in proportion.
      mean, std, dtype, bn_group_size, remat: as in `resnet.ResNet`.
    """

    depths: tuple[int, ...]
    features: tuple[int, ...]
    group: int
    squeeze: float
    num_classes: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: Any = jnp.float32
    bn_group_size: int | None = 64
    remat: str = ''

    @nn.compact
    def __call__(self, images: jax.Array, mode: layers.Mode) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and what they were computed from, as `resnet.ResNet` does."""
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        x = nn.relu(ConvNorm(self.width, 3, 2, bn_group_size=self.bn_group_size, name='stem')(x, mode))
        group = max(1, round(self.group * self.width / STEM))
        for i, (depth, features) in enumerate(zip(self.depths, self.features, strict=True)):
            groups = features // self.group
            options = {
                'features': groups * group,
                'groups': groups,
                'squeeze': self.squeeze,
                'bn_group_size': self.bn_group_size,
            }
            x = make_stage(Block, depth, 2, options, self.remat, names='b{}', first=1, name=f's{i + 1}')(x, mode)
        embedding = x.astype(jnp.float32).mean((1, 2))
        return layers.Head(self.num_classes, name='head')(embedding), {'features': x, 'embedding': embedding}


def _row(depths: tuple[int, ...], features: tuple[int, ...], group: int, squeeze: float = 0.0, **usual: Any):
    """Return a row, of the attributes of `RegNet` and how its weights are usually trained and tested."""
    last = f's4/b{depths[-1]}/conv3/bn'
    note = 'statistics of the BatchNorm that ends the last block, and the classifier'
    if depths[-1] == 1:
        last = '(s4/b1/downsample|s4/b1/conv3)/bn'
        note = 'statistics of both BatchNorms that feed the last sum, branch and shortcut, and the classifier'
    build = functools.partial(RegNet, depths, features, group, squeeze)
    return Architecture(build, 'head/fc', 'stem/conv', last, STEM, note=note, interpolation='bicubic', **usual)


# Depths, channels and group: the paper's tables 8 and 9.
ROWS = {
    'regnetx_032': _row((2, 6, 15, 2), (96, 192, 432, 1008), 48, resize_ratio=1 / 0.965),
    'regnety_016': _row((2, 6, 17, 2), (48, 120, 336, 888), 24, 0.25, resize_ratio=1 / 0.965),
    'regnety_032': _row((2, 5, 13, 1), (72, 216, 576, 1512), 24, 0.25, resize_ratio=1 / 0.95),
    'regnety_160': _row((2, 4, 11, 1), (224, 448, 1232, 3024), 112, 0.25, resize_ratio=1 / 0.95),
}

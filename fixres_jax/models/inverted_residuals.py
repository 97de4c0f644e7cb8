"""Inverted residual blocks with timm's names ('blocks/6/0/bn3'), and the networks that are stages of them.

EfficientNet, EfficientNetV2, MobileNetV2 and MobileNetV3 are tables of `Stage` over this file.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fixres_jax.models import initializers, layers

Activation = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Gate:
    """Describe the squeeze-and-excitation of a block.

    Attributes:
      squeezed: function (channels that enter the block, channels inside it) -> channels between the convolutions.
      activation, gate: as in `layers.SqueezeExcite`.
    """

    squeezed: Callable[[int, int], int]
    activation: Activation
    gate: Activation = nn.sigmoid


@dataclasses.dataclass(frozen=True)
class Stage:
    """Describe a stage: blocks of one kind, of which the first carries the stride.

    Attributes:
      kind: of the blocks, a key of KINDS.
      kernel: side of the convolutions that see more than a pixel.
      stride: of the first block.
      expansion: channels inside a block over those that enter it; one for each block, where they differ.
      features: output channels.
      depth: number of blocks.
      activation: after the BatchNorm layers inside the blocks.
      gate: before the last convolution of each block; None for none.
    """

    kind: str
    kernel: int
    stride: int
    expansion: float | tuple[float, ...]
    features: int
    depth: int
    activation: Activation
    gate: Gate | None = None

    @property
    def blocks(self) -> tuple[tuple[int, float], ...]:
        """Stride and expansion of each block."""
        expansions = self.expansion if isinstance(self.expansion, tuple) else (self.expansion,) * self.depth
        return tuple((1 if i else self.stride, expansion) for i, expansion in enumerate(expansions))


@dataclasses.dataclass(frozen=True)
class Convolution:
    """Describe a convolution of a block: its name, whether it sees more than a pixel, and whether by channel."""

    name: str
    spatial: bool = False
    depthwise: bool = False


# The convolutions of a block in their order, each followed by a BatchNorm: 'bn1', 'bn2', ... All but the last have the
# channels inside the block and an activation.
DEPTHWISE = Convolution('conv_dw', spatial=True, depthwise=True)
KINDS = {
    'plain': (Convolution('conv', spatial=True),),  # with an activation
    'separable': (DEPTHWISE, Convolution('conv_pw')),
    'inverted': (Convolution('conv_pw'), DEPTHWISE, Convolution('conv_pwl')),
    'fused': (Convolution('conv_exp', spatial=True), Convolution('conv_pwl')),
}


def rounded(channels: float, divisor: int = 8) -> int:
    """Return the nearest multiple of a divisor that is at least nine tenths of a number of channels.

    >>> rounded(32 * 1.1), rounded(16 * 0.9)
    (32, 16)
    """
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * channels else nearest


class Block(nn.Module):
    """Convolve as the kind of the stage says, around a shortcut where the shape allows it.

    Attributes:
      conv, norm: functions that make a convolution and a BatchNorm.
      stage: what the block belongs to.
      stride, expansion: of this block.
      drop_path: rate of `layers.DropPath` on the branch.
    """

    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    stage: Stage
    stride: int
    expansion: float
    drop_path: float

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        stage, inputs = self.stage, x.shape[-1]
        inside = rounded(inputs * self.expansion)
        *first, last = KINDS[stage.kind]
        y = x
        for number, convolution in enumerate(first, 1):
            y = stage.activation(self._convolve(y, convolution, inside, number, mode))
        if stage.gate:
            squeezed = stage.gate.squeezed(inputs, inside)
            y = layers.SqueezeExcite(squeezed, activation=stage.gate.activation, gate=stage.gate.gate, name='se')(y)
        y = self._convolve(y, last, stage.features, len(first) + 1, mode)
        if not first:
            y = stage.activation(y)
        if self.stride > 1 or inputs != stage.features:
            return y
        return x + layers.DropPath(self.drop_path, name='drop_path')(y, mode)

    def _convolve(
        self, x: jax.Array, convolution: Convolution, features: int, number: int, mode: layers.Mode
    ) -> jax.Array:
        kernel, stride = (self.stage.kernel, self.stride) if convolution.spatial else (1, 1)
        by_channel = {'groups': features, 'initializer': _by_channel(features)} if convolution.depthwise else {}
        y = self.conv(features, kernel, stride, name=convolution.name, **by_channel)(x)
        return self.norm(name=f'bn{number}')(y, mode)


def _by_channel(groups: int) -> initializers.Initializer:
    """Return TensorFlow's initialisation of a depthwise kernel, whose outputs are those of its own group."""
    return initializers.fan_out(2.0 * groups, initializers.UNIT_NORMAL)


class Blocks(nn.Module):
    """Blocks '0', '1', ... of a stage.

    Attributes:
      conv, norm, stage: as in `Block`.
      drop_paths: rate of each block.
      remat: as in `resnet.ResNet`.
    """

    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    stage: Stage
    drop_paths: tuple[float, ...]
    remat: str

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        block = nn.remat(Block) if self.remat == 'block' else Block
        for i, ((stride, expansion), rate) in enumerate(zip(self.stage.blocks, self.drop_paths, strict=True)):
            x = block(self.conv, self.norm, self.stage, stride, expansion, rate, name=str(i))(x, mode)
        return x


class Stages(nn.Module):
    """Stages '0', '1', ... of a network; attributes as in `Block` and `InvertedResiduals`."""

    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    stages: tuple[Stage, ...]
    drop_path: float
    remat: str

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        stage_of = nn.remat(Blocks) if self.remat == 'stage' else Blocks
        number, total = 0, sum(stage.depth for stage in self.stages)
        for i, stage in enumerate(self.stages):
            rates = tuple(self.drop_path * (number + j) / total for j in range(stage.depth))
            x = stage_of(self.conv, self.norm, stage, rates, self.remat, name=str(i))(x, mode)
            number += stage.depth
        return x


class InvertedResiduals(nn.Module):
    """Classify images of any size.

    Attributes:
      stages: with the channels of this network.
      head: channels of the last convolution.
      late_head: the last convolution follows the pool, with a bias and without a BatchNorm (MobileNetV3).
      activation: of stem and head.
      epsilon: of BatchNorm.
      num_classes: number of logits.
      width: channels of the stem.
      mean, std: of the RGB channels, in [0, 1].
      padding: a name in `layers.PADDINGS`.
      dropout: rate of numbers of the embedding left out in training.
      drop_path: rate of the branch of the last block left out in training; earlier blocks' are in proportion.
      dtype: of the activations; parameters, statistics, embeddings and logits are float32.
      bn_group_size: number of images that share BatchNorm statistics; None for the whole batch.
      remat: as in `resnet.ResNet`.
    """

    stages: tuple[Stage, ...]
    head: int
    late_head: bool
    activation: Activation
    epsilon: float
    num_classes: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: str
    dropout: float
    drop_path: float
    dtype: Any = jnp.float32
    bn_group_size: int | None = 64
    remat: str = ''

    @nn.compact
    def __call__(self, images: jax.Array, mode: layers.Mode) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and what they were computed from; arguments and values as `resnet.ResNet`."""
        conv = functools.partial(layers.Conv, padding=layers.PADDINGS[self.padding])
        norm = functools.partial(layers.BatchNorm, self.bn_group_size, epsilon=self.epsilon, momentum=0.1)
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        x = self.activation(norm(name='bn1')(conv(self.width, 3, 2, name='conv_stem')(x), mode))
        x = Stages(conv, norm, self.stages, self.drop_path, self.remat, name='blocks')(x, mode)
        if self.late_head:
            pooled = x.astype(jnp.float32).mean((1, 2), keepdims=True)
            embedding = self.activation(conv(self.head, 1, bias=True, name='conv_head')(pooled))[:, 0, 0]
        else:
            x = self.activation(norm(name='bn2')(conv(self.head, 1, name='conv_head')(x), mode))
            embedding = x.astype(jnp.float32).mean((1, 2))
        kept = layers.Dropout(self.dropout, name='dropout')(embedding, mode)
        logits = layers.Classifier(self.num_classes, name='classifier')(kept)
        return logits, {'features': x, 'embedding': embedding}


def create(
    stages: tuple[Stage, ...], stem: int, head: int, *, width: int, late_head: bool = False, **options: Any
) -> InvertedResiduals:
    """Create a network.

    Args:
      stages, stem, head: of the published network: its stages, and channels of its first and last convolution.
      width: channels of the stem, to which all others are in proportion.
      late_head: as in `InvertedResiduals`.
      **options: its other attributes.
    """
    share = width / stem
    stages = tuple(dataclasses.replace(stage, features=rounded(stage.features * share)) for stage in stages)
    return InvertedResiduals(stages, rounded(head * share), late_head, width=width, **options)

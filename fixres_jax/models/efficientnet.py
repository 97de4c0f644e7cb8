"""EfficientNet and EfficientNet-Lite with timm's structure and names ('blocks/6/0/bn3')."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fixres_jax.models import layers
from fixres_jax.models.architecture import Architecture

HALF = (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Hold what the blocks of a network are made of: functions that make its layers."""

    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    activation: Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Stage:
    """Describe a stage: blocks of one kind, of which the first carries the stride.

    Attributes:
      kernel: side of the depthwise convolutions.
      stride: of the first block.
      expansion: channels inside a block over those that enter it; 1 for blocks without an expanding convolution.
      features: output channels, before the network's width.
      depth: blocks, before the network's depth.
    """

    kernel: int
    stride: int
    expansion: int
    features: int
    depth: int


# Tan and Le 2019, table 1.
STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)
STEM, HEAD = 32, 1280
SQUEEZE = 0.25  # channels of a gate over those that enter its block


def rounded(channels: float, divisor: int = 8) -> int:
    """Return the nearest multiple of a divisor that is at least nine tenths of a number of channels.

    >>> rounded(32 * 1.1), rounded(16 * 0.9)
    (32, 16)
    """
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * channels else nearest


class Block(nn.Module):
    """Expand, convolve by channel, gate, project, around a shortcut where the shape allows it.

    Attributes:
      pieces: what the network's blocks are made of.
      features: output channels.
      kernel: side of the depthwise convolution.
      stride: of it.
      expansion: as in `Stage`.
      squeezed: channels of the gate; 0 for none.
      drop_path: rate of `layers.DropPath` on the branch.
    """

    pieces: Pieces
    features: int
    kernel: int
    stride: int
    expansion: int
    squeezed: int
    drop_path: float

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        conv, norm, activation = self.pieces.conv, self.pieces.norm, self.pieces.activation
        bn = (norm(name=f'bn{number}') for number in (1, 2, 3))
        y, inner = x, x.shape[-1] * self.expansion
        if self.expansion > 1:
            y = activation(next(bn)(conv(inner, 1, name='conv_pw')(y), mode))
        y = conv(inner, self.kernel, self.stride, groups=inner, initializer=_depthwise_init(inner), name='conv_dw')(y)
        y = activation(next(bn)(y, mode))
        if self.squeezed:
            y = layers.SqueezeExcite(self.squeezed, activation=activation, name='se')(y)
        y = conv(self.features, 1, name='conv_pwl' if self.expansion > 1 else 'conv_pw')(y)
        y = next(bn)(y, mode)
        if self.stride > 1 or x.shape[-1] != self.features:
            return y
        return x + layers.DropPath(self.drop_path, name='drop_path')(y, mode)


def _depthwise_init(groups: int) -> nn.initializers.Initializer:
    """Return TensorFlow's initialisation of a depthwise kernel, whose outputs are those of its own group."""
    return nn.initializers.variance_scaling(2.0 * groups, 'fan_out', 'normal')


class Blocks(nn.Module):
    """Blocks '0', '1', ... of one stage."""

    pieces: Pieces
    stage: Stage
    squeeze: float
    drop_paths: tuple[float, ...]
    remat: str

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        block = nn.remat(Block) if self.remat == 'block' else Block
        for i, rate in enumerate(self.drop_paths):
            x = block(
                self.pieces,
                self.stage.features,
                self.stage.kernel,
                self.stage.stride if i == 0 else 1,
                self.stage.expansion,
                round(x.shape[-1] * self.squeeze),
                rate,
                name=str(i),
            )(x, mode)
        return x


class Stages(nn.Module):
    """Stages '0', '1', ... of a network."""

    pieces: Pieces
    stages: tuple[Stage, ...]
    squeeze: float
    drop_path: float
    remat: str

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        stage_of = nn.remat(Blocks) if self.remat == 'stage' else Blocks
        number, total = 0, sum(stage.depth for stage in self.stages)
        for i, stage in enumerate(self.stages):
            rates = tuple(self.drop_path * (number + j) / total for j in range(stage.depth))
            x = stage_of(self.pieces, stage, self.squeeze, rates, self.remat, name=str(i))(x, mode)
            number += stage.depth
        return x


class EfficientNet(nn.Module):
    """Classify images of any size.

    Attributes:
      stages: with the channels and depths of this network.
      head: channels of the last convolution.
      squeeze: channels of a gate over those that enter its block; 0 for no gates.
      activation: after the BatchNorm layers.
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
    squeeze: float
    activation: Callable[[jax.Array], jax.Array]
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
        pieces = Pieces(conv, norm, self.activation)
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        x = self.activation(norm(name='bn1')(conv(self.width, 3, 2, name='conv_stem')(x), mode))
        x = Stages(pieces, self.stages, self.squeeze, self.drop_path, self.remat, name='blocks')(x, mode)
        x = self.activation(norm(name='bn2')(conv(self.head, 1, name='conv_head')(x), mode))
        embedding = x.astype(jnp.float32).mean((1, 2))
        kept = layers.Dropout(self.dropout, name='dropout')(embedding, mode)
        logits = layers.Classifier(self.num_classes, name='classifier')(kept)
        return logits, {'features': x, 'embedding': embedding}


def create_efficientnet(
    width_factor: float, depth_factor: float, *, lite: bool, width: int, epsilon: float, **options: Any
) -> EfficientNet:
    """Create a network of the family.

    Args:
      width_factor, depth_factor: channels and depths over those of b0.
      lite: without gates, with ReLU6; stem and head keep their channels, the first and the last stage their depth.
      width: channels of the stem, to which all others are in proportion.
      epsilon: of BatchNorm.
      **options: the other attributes of `EfficientNet`.
    """
    share = width / stem_channels(width_factor, lite)
    last = len(STAGES) - 1
    stages = tuple(
        dataclasses.replace(
            stage,
            features=rounded(stage.features * width_factor * share),
            depth=stage.depth if lite and i in (0, last) else math.ceil(stage.depth * depth_factor),
        )
        for i, stage in enumerate(STAGES)
    )
    head = rounded(HEAD * (1 if lite else width_factor) * share)
    squeeze, activation = (0.0, nn.relu6) if lite else (SQUEEZE, nn.silu)
    return EfficientNet(stages, head, squeeze, activation, epsilon, width=width, **options)


def stem_channels(width_factor: float, lite: bool) -> int:
    """Return the channels of the published stem."""
    return STEM if lite else rounded(STEM * width_factor)


def _row(factors: tuple[float, float], dropout: float, tensorflow: bool, lite: bool, **usual: Any) -> Architecture:
    """Return a row.

    Args:
      factors: of width and depth.
      dropout: rate in training.
      tensorflow: TensorFlow's padding and epsilon instead of torch's: what the same arrays were trained with.
      lite: as in `create_efficientnet`.
      **usual: how weights are usually trained and tested.
    """
    build = functools.partial(create_efficientnet, *factors, lite=lite, epsilon=1e-3 if tensorflow else 1e-5)
    padding = 'same' if tensorflow else 'symmetric'
    return Architecture(
        build, 'classifier', 'conv_stem', 'bn2', width=stem_channels(factors[0], lite),
        options={'dropout': dropout, 'drop_path': 0.2, 'padding': padding}, note=NOTE, **usual,
    )  # fmt: skip


def _rows(tensorflow: bool) -> dict[str, Architecture]:
    rows, prefix = {}, 'tf_' if tensorflow else ''
    for name, (width, depth, dropout, size, crop) in SIZES.items():
        lite = name.startswith('lite')
        usual = {'train_resolution': size, 'resize_ratio': 1 / crop, 'interpolation': 'bicubic'}
        if tensorflow and (lite or name == 'b8'):
            usual |= {'mean': HALF, 'std': HALF}
        if tensorflow and name in ('lite3', 'lite4'):
            usual['interpolation'] = 'bilinear'
        rows[f'{prefix}efficientnet_{name}'] = _row((width, depth), dropout, tensorflow, lite, **usual)
    return rows


NOTE = 'statistics of the BatchNorm before the pool, and the classifier'
# Width and depth over b0's, dropout, resolution of training (pixels), crop over resized side of the test. Source: timm
# 1.0.31; the sizes of training of lite3 and lite4 are TensorFlow's, whose weights timm tests at 300 and 380.
SIZES = {
    'b0': (1.0, 1.0, 0.2, 224, 0.875),
    'b1': (1.0, 1.1, 0.2, 240, 0.882),
    'b2': (1.1, 1.2, 0.3, 260, 0.890),
    'b3': (1.2, 1.4, 0.3, 300, 0.904),
    'b4': (1.4, 1.8, 0.4, 380, 0.922),
    'b5': (1.6, 2.2, 0.4, 456, 0.934),
    'b6': (1.8, 2.6, 0.5, 528, 0.942),
    'b7': (2.0, 3.1, 0.5, 600, 0.949),
    'b8': (2.2, 3.6, 0.5, 672, 0.954),
    'l2': (4.3, 5.3, 0.5, 800, 0.961),
    'lite0': (1.0, 1.0, 0.2, 224, 0.875),
    'lite1': (1.0, 1.1, 0.2, 240, 0.882),
    'lite2': (1.1, 1.2, 0.3, 260, 0.890),
    'lite3': (1.2, 1.4, 0.3, 280, 0.904),
    'lite4': (1.4, 1.8, 0.3, 300, 0.920),
}
ROWS = _rows(tensorflow=True) | _rows(tensorflow=False)

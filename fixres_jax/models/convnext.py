"""ConvNeXt and ConvNeXt V2 with timm's structure and names ('stages/3/blocks/2/mlp/fc1')."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fixres_jax.models import initializers, layers
from fixres_jax.models.architecture import Architecture
from fixres_jax.models.stages import rates_of_stages

LayerNorm = functools.partial(layers.LayerNorm, 1e-6)
# Liu et al. 2022: the kernels of all convolutions begin as those of the linear layers.
Conv = functools.partial(layers.Conv, bias=True, initializer=initializers.TRUNCATED)


class Block(nn.Module):
    """Convolve by channel over 7x7 pixels, then map the channels of each pixel, around a shortcut.

    Attributes:
      response_norm: ConvNeXt V2's normalization within the perceptron, instead of a scale of the branch.
      drop_path: rate of `layers.DropPath` on the branch.
    """

    response_norm: bool
    drop_path: float

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        channels = x.shape[-1]
        y = Conv(channels, 7, groups=channels, padding=layers.symmetric, name='conv_dw')(x)
        y = layers.Perceptron(self.response_norm, name='mlp')(LayerNorm(name='norm')(y))
        if not self.response_norm:
            gamma = self.param('gamma', nn.initializers.constant(1e-6), (channels,), jnp.float32)
            y = y * gamma.reshape(1, 1, 1, -1).astype(y.dtype)
        return x + layers.DropPath(self.drop_path, name='drop_path')(y, mode)


class Patches(nn.Module):
    """Halve or quarter the sides: layers '0' and '1', a convolution whose windows do not overlap and a LayerNorm.

    Attributes:
      features: output channels.
      side: of the windows.
      norm_first: whether the LayerNorm is '0', as between stages, or '1', as at the stem.
    """

    features: int
    side: int
    norm_first: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        convolve = Conv(self.features, self.side, self.side, padding=layers.valid, name=str(int(self.norm_first)))
        if self.norm_first:
            return convolve(LayerNorm(name='0')(x))
        return LayerNorm(name='1')(convolve(x))


class Blocks(nn.Module):
    """Blocks '0', '1', ... of one stage."""

    response_norm: bool
    drop_paths: Sequence[float]
    remat: str

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        block = nn.remat(Block) if self.remat == 'block' else Block
        for i, rate in enumerate(self.drop_paths):
            x = block(self.response_norm, rate, name=str(i))(x, mode)
        return x


class Stage(nn.Module):
    """Blocks of one width, after a layer that halves the sides in every stage but the first."""

    features: int
    response_norm: bool
    drop_paths: Sequence[float]
    remat: str

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        if x.shape[-1] != self.features:
            x = Patches(self.features, 2, norm_first=True, name='downsample')(x)
        return Blocks(self.response_norm, self.drop_paths, self.remat, name='blocks')(x, mode)


class Stages(nn.Module):
    """Stages '0' to '3', each of twice the channels of the one before."""

    depths: tuple[int, ...]
    width: int
    response_norm: bool
    drop_path: float
    remat: str

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        rates = rates_of_stages(self.drop_path, self.depths)
        stage = nn.remat(Stage) if self.remat == 'stage' else Stage
        for i, own in enumerate(rates):
            x = stage(self.width * 2**i, self.response_norm, own, self.remat, name=str(i))(x, mode)
        return x


class Head(nn.Module):
    """LayerNorm of what the pool gives out, and the classifier."""

    num_classes: int
    dropout: float

    @nn.compact
    def __call__(self, pooled: jax.Array, mode: layers.Mode) -> tuple[jax.Array, jax.Array]:
        embedding = LayerNorm(name='norm')(pooled)
        kept = layers.Dropout(self.dropout, name='dropout')(embedding, mode)
        return layers.Classifier(self.num_classes, name='fc')(kept), embedding


class ConvNeXt(nn.Module):
    """Classify images of 32 pixels a side or more.

    Attributes:
      depths: number of blocks of each of the four stages.
      response_norm: as in `Block`.
      num_classes: number of logits.
      width: channels of the stem, to which all others are in proportion.
      mean, std: of the RGB channels, in [0, 1].
      dropout: rate of numbers of the embedding left out in training.
      drop_path: rate of the branch of the last block left out in training; earlier blocks' are in proportion.
      dtype: of the activations; parameters, embeddings and logits are float32.
      bn_group_size: without effect, because there is no BatchNorm.
      remat: as in `resnet.ResNet`.
    """

    depths: tuple[int, ...]
    response_norm: bool
    num_classes: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dropout: float
    drop_path: float
    dtype: Any = jnp.float32
    bn_group_size: int | None = None
    remat: str = ''

    @nn.compact
    def __call__(self, images: jax.Array, mode: layers.Mode) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and what they were computed from; arguments and values as `resnet.ResNet`."""
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        x = Patches(self.width, 4, norm_first=False, name='stem')(x)
        x = Stages(self.depths, self.width, self.response_norm, self.drop_path, self.remat, name='stages')(x, mode)
        pooled = x.astype(jnp.float32).mean((1, 2))
        logits, embedding = Head(self.num_classes, self.dropout, name='head')(pooled, mode)
        return logits, {'features': x, 'embedding': embedding}


def _row(depths: tuple[int, ...], width: int, drop_path: float, response_norm: bool = False) -> Architecture:
    return Architecture(
        functools.partial(ConvNeXt, depths, response_norm), 'head/fc', 'stem/0', '', width=width,
        options={'dropout': 0.0, 'drop_path': drop_path}, head_norm='head/norm', interpolation='bicubic',
        resize_ratio=1 / 0.875, note=NOTE,
    )  # fmt: skip


NOTE = 'no BatchNorm: the classifier of what the last LayerNorm gives out; an experiment, without published figures'
# Depths, channels of the stem, drop path of training. Source: TRAINING.md of facebookresearch/ConvNeXt and ConvNeXt-V2.
ROWS = {
    'convnext_tiny': _row((3, 3, 9, 3), 96, 0.1),
    'convnext_base': _row((3, 3, 27, 3), 128, 0.5),
    'convnextv2_tiny': _row((3, 3, 9, 3), 96, 0.2, response_norm=True),
}

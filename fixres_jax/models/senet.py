"""SENet-154 with timm's structure and names, which are Cadene's ('layer4/2/bn3')."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fixres_jax.core.errors import UsageError
from fixres_jax.models import layers
from fixres_jax.models.architecture import Architecture
from fixres_jax.models.stages import make_stage

# torch's defaults, with which the released weights were trained.
BatchNorm = functools.partial(layers.BatchNorm, epsilon=1e-5, momentum=0.1)
Conv = functools.partial(layers.Conv, padding=layers.symmetric)
GROUPS = 64  # of the 3x3 convolutions
REDUCTION = 16  # channels of a block over those between the two convolutions of its gate


class Downsample(nn.Module):
    """Bring the shortcut to the shape of the block's output: a convolution and a BatchNorm."""

    features: int
    kernel_size: int
    stride: int
    bn_group_size: int | None

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        x = Conv(self.features, self.kernel_size, self.stride, name='0')(x)
        return BatchNorm(self.bn_group_size, name='1')(x, mode)


class Block(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions and a gate around a shortcut.

    Attributes:
      planes: a quarter of the output channels.
      shortcut: side of the window of the convolution in the shortcut, where that needs one.
      stride: of the 3x3 convolution.
      bn_group_size: as in `layers.BatchNorm`.
    """

    planes: int
    shortcut: int
    stride: int
    bn_group_size: int | None

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        features = 4 * self.planes
        y = Conv(2 * self.planes, 1, name='conv1')(x)
        y = nn.relu(BatchNorm(self.bn_group_size, name='bn1')(y, mode))
        y = Conv(features, 3, self.stride, GROUPS, name='conv2')(y)
        y = nn.relu(BatchNorm(self.bn_group_size, name='bn2')(y, mode))
        y = BatchNorm(self.bn_group_size, name='bn3')(Conv(features, 1, name='conv3')(y), mode)
        y = layers.SqueezeExcite(features // REDUCTION, ('fc1', 'fc2'), name='se_module')(y)
        if x.shape[-1] != features:
            x = Downsample(features, self.shortcut, self.stride, self.bn_group_size, name='downsample')(x, mode)
        return nn.relu(x + y)


class Stem(nn.Module):
    """Three 3x3 convolutions, the last of twice the channels."""

    features: int
    bn_group_size: int | None

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        for number, features, stride in ((1, self.features, 2), (2, self.features, 1), (3, 2 * self.features, 1)):
            x = Conv(features, 3, stride, name=f'conv{number}')(x)
            x = nn.relu(BatchNorm(self.bn_group_size, name=f'bn{number}')(x, mode))
        return x


class SENet(nn.Module):
    """Classify images of 32 pixels a side or more.

    Attributes:
      depths: number of blocks of each of the four stages.
      num_classes: number of logits.
      width: channels of the first convolution, to which all others are in proportion.
      mean, std: of the RGB channels, in [0, 1].
      dropout: rate, on the embedding.
      dtype, bn_group_size, remat: as in `resnet.ResNet`.
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
        """Return logits and what they were computed from, as `resnet.ResNet` does."""
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        x = Stem(self.width, self.bn_group_size, name='layer0')(x, mode)
        x = layers.max_pool(x, 3, 2, layers.valid, ceil_mode=True)
        for i, depth in enumerate(self.depths):
            options = {
                'planes': self.width * 2**i,
                'shortcut': 1 if i == 0 else 3,
                'bn_group_size': self.bn_group_size,
            }
            x = make_stage(Block, depth, 1 if i == 0 else 2, options, self.remat, name=f'layer{i + 1}')(x, mode)
        embedding = x.astype(jnp.float32).mean((1, 2))
        kept = layers.Dropout(self.dropout, name='dropout')(embedding, mode)
        logits = layers.Classifier(self.num_classes, name='last_linear')(kept)
        return logits, {'features': x, 'embedding': embedding}


def create_senet(depths: tuple[int, ...], **options: Any) -> SENet:
    """Create a network of the family; raise UsageError for a width that its groups do not divide."""
    model = SENet(depths, **options)
    if 2 * model.width % GROUPS:
        raise UsageError(
            f'width={model.width} leaves {2 * model.width} channels to {GROUPS} groups: width is a multiple of '
            f'{GROUPS // 2}.'
        )
    return model


ROWS = {
    'senet154': Architecture(
        functools.partial(create_senet, (3, 8, 36, 3)), 'last_linear', 'layer0/conv1', 'layer4/2/bn3',
        options={'dropout': 0.2},
        note='statistics of the BatchNorm that ends the last block, before its gate, and the classifier',
    ),
}  # fmt: skip

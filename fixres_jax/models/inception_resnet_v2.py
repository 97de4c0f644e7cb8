"""Inception-ResNet-v2 with timm's structure and names ('repeat_1/19/branch1/2/bn')."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fixres_jax.models import layers
from fixres_jax.models.architecture import HALF, Architecture

# A convolution is (channels, side or sides of the kernel[, stride]); a branch is convolutions one after the other.
Branch = tuple[tuple[Any, ...], ...]
STEM = 32
# Szegedy et al. 2017, as timm has them: branches, what the sum of the block is scaled by, number of blocks.
RESIDUAL: dict[str, tuple[tuple[Branch, ...], float, int]] = {
    'repeat': ((((32, 1),), ((32, 1), (32, 3)), ((32, 1), (48, 3), (64, 3))), 0.17, 10),
    'repeat_1': ((((192, 1),), ((128, 1), (160, (1, 7)), (192, (7, 1)))), 0.10, 20),
    'repeat_2': ((((192, 1),), ((192, 1), (224, (1, 3)), (256, (3, 1)))), 0.20, 9),
}
MIXED: dict[str, tuple[Branch, ...]] = {
    'mixed_5b': (((96, 1),), ((48, 1), (64, 5)), ((64, 1), (96, 3), (96, 3))),
    'mixed_6a': (((384, 3, 2),), ((256, 1), (256, 3), (384, 3, 2))),
    'mixed_7a': (((256, 1), (384, 3, 2)), ((256, 1), (288, 3, 2)), ((256, 1), (288, 3), (320, 3, 2))),
}
max_pool = functools.partial(layers.max_pool, side=3, stride=2, padding=layers.valid)


def convolve(unit: Callable[..., nn.Module], features: int, side: Any, stride: int = 1, *, name: str) -> nn.Module:
    """Make a convolution of a branch: what keeps the size of the map is padded, what halves it is not."""
    padding = layers.symmetric if stride == 1 else layers.valid
    return unit(features, side, stride, padding=padding, name=name)


class Chain(nn.Module):
    """Convolutions one after the other, the first of which has a number."""

    unit: Callable[..., nn.Module]
    branch: Branch
    first: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        for number, one in enumerate(self.branch, self.first):
            x = convolve(self.unit, *one, name=str(number))(x, mode)
        return x


class Branches(nn.Module):
    """Branches side by side, and what else takes the same map; their channels follow one another in the output.

    Attributes:
      unit: makes a convolution with its BatchNorm and ReLU.
      branches: as in MIXED.
      pool: 'max' for a pool beside the branches, 'mean' for one with a convolution, or ''.
    """

    unit: Callable[..., nn.Module]
    branches: tuple[Branch, ...]
    pool: str = ''

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        return side_by_side(self.unit, self.branches, self.pool, x, mode)


def side_by_side(
    unit: Callable[..., nn.Module], branches: tuple[Branch, ...], pool: str, x: jax.Array, mode: layers.Mode
) -> jax.Array:
    """Apply branches 'branch0', 'branch1', ... of the module that calls this; arguments as in `Branches`."""
    outputs = []
    for number, branch in enumerate(branches):
        name = f'branch{number}'
        one = convolve(unit, *branch[0], name=name) if len(branch) == 1 else Chain(unit, branch, name=name)
        outputs.append(one(x, mode))
    if pool == 'mean':
        mean = layers.avg_pool(x, 3, 1, layers.symmetric, count_include_pad=False)
        outputs.append(Chain(unit, ((64, 1),), 1, name=f'branch{len(branches)}')(mean, mode))
    elif pool == 'max':
        outputs.append(max_pool(x))
    return jnp.concatenate(outputs, -1)


class Residual(nn.Module):
    """Branches, a 1x1 convolution of all, its share added to the input.

    Attributes:
      unit, branches: as in `Branches`.
      share: what the branches are scaled by.
      activation: of the sum.
    """

    unit: Callable[..., nn.Module]
    branches: tuple[Branch, ...]
    share: float
    activation: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        y = side_by_side(self.unit, self.branches, '', x, mode)
        y = layers.Conv(x.shape[-1], 1, padding=layers.valid, bias=True, name='conv2d')(y) * self.share + x
        return nn.relu(y) if self.activation else y


class Repeat(nn.Module):
    """Residual blocks '0', '1', ... of one kind."""

    unit: Callable[..., nn.Module]
    branches: tuple[Branch, ...]
    share: float
    depth: int
    remat: str

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        block = nn.remat(Residual) if self.remat == 'block' else Residual
        for i in range(self.depth):
            x = block(self.unit, self.branches, self.share, name=str(i))(x, mode)
        return x


class InceptionResNetV2(nn.Module):
    """Classify images of 75 pixels a side or more.

    Attributes:
      num_classes: number of logits.
      width: channels of the stem, to which all others are in proportion.
      mean, std: of the RGB channels, in [0, 1].
      dropout: rate of numbers of the embedding left out in training.
      dtype: of the activations; parameters, statistics, embeddings and logits are float32.
      bn_group_size: number of images that share BatchNorm statistics; None for the whole batch.
      remat: as in `resnet.ResNet`; a stage is the residual blocks of one kind.
    """

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
        norm = functools.partial(layers.BatchNorm, self.bn_group_size, epsilon=1e-3, momentum=0.1)

        def unit(features: int, *shape: Any, **options: Any) -> nn.Module:
            return layers.ConvNormAct(norm, max(1, features * self.width // STEM), *shape, **options)

        make = nn.remat(Repeat) if self.remat == 'stage' else Repeat

        def mixed(x: jax.Array, name: str, pool: str) -> jax.Array:
            return Branches(unit, MIXED[name], pool, name=name)(x, mode)

        def repeat(x: jax.Array, name: str) -> jax.Array:
            return make(unit, *RESIDUAL[name], self.remat, name=name)(x, mode)

        x = layers.normalize(images, self.mean, self.std, self.dtype)
        x = unit(32, 3, 2, padding=layers.valid, name='conv2d_1a')(x, mode)
        x = unit(32, 3, padding=layers.valid, name='conv2d_2a')(x, mode)
        x = max_pool(unit(64, 3, padding=layers.symmetric, name='conv2d_2b')(x, mode))
        x = unit(80, 1, padding=layers.valid, name='conv2d_3b')(x, mode)
        x = max_pool(unit(192, 3, padding=layers.valid, name='conv2d_4a')(x, mode))
        x = repeat(mixed(x, 'mixed_5b', 'mean'), 'repeat')
        x = repeat(mixed(x, 'mixed_6a', 'max'), 'repeat_1')
        x = repeat(mixed(x, 'mixed_7a', 'max'), 'repeat_2')
        x = Residual(unit, RESIDUAL['repeat_2'][0], 1.0, activation=False, name='block8')(x, mode)
        x = unit(1536, 1, padding=layers.valid, name='conv2d_7b')(x, mode)
        embedding = x.astype(jnp.float32).mean((1, 2))
        kept = layers.Dropout(self.dropout, name='dropout')(embedding, mode)
        logits = layers.Classifier(self.num_classes, name='classif')(kept)
        return logits, {'features': x, 'embedding': embedding}


NOTE = 'statistics of the BatchNorm straight before the pool, and the classifier'
ROWS = {
    'inception_resnet_v2': Architecture(
        InceptionResNetV2, 'classif', 'conv2d_1a/conv', 'conv2d_7b/bn', width=STEM, options={'dropout': 0.2},
        min_resolution=75, mean=HALF, std=HALF, train_resolution=299, interpolation='bicubic', resize_ratio=1 / 0.8975,
        note=NOTE,
    ),
}  # fmt: skip

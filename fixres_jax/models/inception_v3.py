"""Inception-v3 with timm's structure and names ('Mixed_7c/branch_pool/bn')."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fixres_jax.models import layers
from fixres_jax.models.architecture import HALF, Architecture

# A convolution is (name, channels, side or sides of the kernel[, stride]), and a branch is convolutions one after the
# other, or the name of a pool; two in a tuple take the same map.
Branch = tuple[Any, ...]
WIDE, HIGH = (1, 7), (7, 1)


def _fine(pooled: int) -> tuple[Branch, ...]:
    return (
        (('branch1x1', 64, 1),),
        (('branch5x5_1', 48, 1), ('branch5x5_2', 64, 5)),
        (('branch3x3dbl_1', 64, 1), ('branch3x3dbl_2', 96, 3), ('branch3x3dbl_3', 96, 3)),
        ('mean', ('branch_pool', pooled, 1)),
    )


def _factorized(inner: int) -> tuple[Branch, ...]:
    """Return the branches of a block whose 7x7 convolutions are pairs of one row and one column."""
    long = [('branch7x7dbl_1', inner, 1)]
    long += [(f'branch7x7dbl_{number}', inner, WIDE if number % 2 else HIGH) for number in (2, 3, 4)]
    return (
        (('branch1x1', 192, 1),),
        (('branch7x7_1', inner, 1), ('branch7x7_2', inner, WIDE), ('branch7x7_3', 192, HIGH)),
        (*long, ('branch7x7dbl_5', 192, WIDE)),
        ('mean', ('branch_pool', 192, 1)),
    )


def _coarse() -> tuple[Branch, ...]:
    def both(name: str) -> tuple[Any, ...]:
        return (f'{name}a', 384, (1, 3)), (f'{name}b', 384, (3, 1))

    return (
        (('branch1x1', 320, 1),),
        (('branch3x3_1', 384, 1), both('branch3x3_2')),
        (('branch3x3dbl_1', 448, 1), ('branch3x3dbl_2', 384, 3), both('branch3x3dbl_3')),
        ('mean', ('branch_pool', 192, 1)),
    )


# Szegedy et al. 2016, figures 5 to 7 and 10, as timm has them.
BLOCKS: dict[str, tuple[Branch, ...]] = {
    'Mixed_5b': _fine(32),
    'Mixed_5c': _fine(64),
    'Mixed_5d': _fine(64),
    'Mixed_6a': (
        (('branch3x3', 384, 3, 2),),
        (('branch3x3dbl_1', 64, 1), ('branch3x3dbl_2', 96, 3), ('branch3x3dbl_3', 96, 3, 2)),
        ('max',),
    ),
    'Mixed_6b': _factorized(128),
    'Mixed_6c': _factorized(160),
    'Mixed_6d': _factorized(160),
    'Mixed_6e': _factorized(192),
    'Mixed_7a': (
        (('branch3x3_1', 192, 1), ('branch3x3_2', 320, 3, 2)),
        (
            ('branch7x7x3_1', 192, 1), ('branch7x7x3_2', 192, WIDE), ('branch7x7x3_3', 192, HIGH),
            ('branch7x7x3_4', 192, 3, 2),
        ),
        ('max',),
    ),
    'Mixed_7b': _coarse(),
    'Mixed_7c': _coarse(),
}  # fmt: skip
POOLS = {
    'mean': functools.partial(layers.avg_pool, side=3, stride=1, padding=layers.symmetric),
    'max': functools.partial(layers.max_pool, side=3, stride=2, padding=layers.valid),
}


class Mixed(nn.Module):
    """Branches side by side, whose channels follow one another in the output.

    Attributes:
      unit: makes a convolution with its BatchNorm and ReLU.
      branches: as in BLOCKS.
    """

    unit: Callable[..., nn.Module]
    branches: tuple[Branch, ...]

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        def convolve(y: jax.Array, name: str, features: int, side: Any, stride: int = 1) -> jax.Array:
            # What keeps the size of the map is padded, what halves it is not.
            padding = layers.symmetric if stride == 1 else layers.valid
            return self.unit(features, side, stride, padding=padding, name=name)(y, mode)

        outputs = []
        for branch in self.branches:
            ends = [x]
            for step in branch:
                (y,) = ends
                if isinstance(step, str):
                    ends = [POOLS[step](y)]
                else:
                    ends = [convolve(y, *one) for one in (step if isinstance(step[0], tuple) else (step,))]
            outputs += ends
        return jnp.concatenate(outputs, -1)


class InceptionV3(nn.Module):
    """Classify images of 75 pixels a side or more.

    Attributes:
      num_classes: number of logits.
      width: channels of the stem, to which all others are in proportion.
      mean, std: of the RGB channels, in [0, 1].
      dropout: rate of numbers of the embedding left out in training.
      dtype: of the activations; parameters, statistics, embeddings and logits are float32.
      bn_group_size: number of images that share BatchNorm statistics; None for the whole batch.
      remat: as in `resnet.ResNet`, without 'stage'.
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

        x = layers.normalize(images, self.mean, self.std, self.dtype)
        x = unit(32, 3, 2, padding=layers.valid, name='Conv2d_1a_3x3')(x, mode)
        x = unit(32, 3, padding=layers.valid, name='Conv2d_2a_3x3')(x, mode)
        x = unit(64, 3, padding=layers.symmetric, name='Conv2d_2b_3x3')(x, mode)
        x = POOLS['max'](x)
        x = unit(80, 1, padding=layers.valid, name='Conv2d_3b_1x1')(x, mode)
        x = unit(192, 3, padding=layers.valid, name='Conv2d_4a_3x3')(x, mode)
        x = POOLS['max'](x)
        make = nn.remat(Mixed) if self.remat == 'block' else Mixed
        for name, branches in BLOCKS.items():
            x = make(unit, branches, name=name)(x, mode)
        embedding = x.astype(jnp.float32).mean((1, 2))
        kept = layers.Dropout(self.dropout, name='dropout')(embedding, mode)
        logits = layers.Classifier(self.num_classes, name='fc')(kept)
        return logits, {'features': x, 'embedding': embedding}


STEM = 32
LAST = 'Mixed_7c/(branch1x1|branch3x3_2[ab]|branch3x3dbl_3[ab]|branch_pool)/bn'
NOTE = 'statistics of the six BatchNorm layers that end the branches of the last block, and the classifier'
ROWS = {
    'inception_v3': Architecture(
        InceptionV3, 'fc', 'Conv2d_1a_3x3/conv', LAST, width=STEM, options={'dropout': 0.2}, remat=('', 'block'),
        min_resolution=75, mean=HALF, std=HALF, train_resolution=299, interpolation='bicubic', resize_ratio=1 / 0.875,
        note=NOTE,
    ),
}  # fmt: skip

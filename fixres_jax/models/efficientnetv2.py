"""EfficientNetV2 with timm's structure and names ('blocks/5/0/bn3'): fused blocks first, inverted residuals later."""

import functools

import flax.linen as nn

from fixres_jax.models import inverted_residuals
from fixres_jax.models.architecture import HALF, IMAGENET_MEAN, IMAGENET_STD, Architecture
from fixres_jax.models.efficientnet import GATE
from fixres_jax.models.inverted_residuals import Stage

# Tan and Le 2021, and effnetv2_configs.py of google/automl.
B0 = (
    Stage('plain', 3, 1, 1, 16, 1, nn.silu),
    Stage('fused', 3, 2, 4, 32, 2, nn.silu),
    Stage('fused', 3, 2, 4, 48, 2, nn.silu),
    Stage('inverted', 3, 2, 4, 96, 3, nn.silu, GATE),
    Stage('inverted', 3, 1, 6, 112, 5, nn.silu, GATE),
    Stage('inverted', 3, 2, 6, 192, 8, nn.silu, GATE),
)
S = (
    Stage('plain', 3, 1, 1, 24, 2, nn.silu),
    Stage('fused', 3, 2, 4, 48, 4, nn.silu),
    Stage('fused', 3, 2, 4, 64, 4, nn.silu),
    Stage('inverted', 3, 2, 4, 128, 6, nn.silu, GATE),
    Stage('inverted', 3, 1, 6, 160, 9, nn.silu, GATE),
    Stage('inverted', 3, 2, 6, 256, 15, nn.silu, GATE),
)
M = (
    Stage('plain', 3, 1, 1, 24, 3, nn.silu),
    Stage('fused', 3, 2, 4, 48, 5, nn.silu),
    Stage('fused', 3, 2, 4, 80, 5, nn.silu),
    Stage('inverted', 3, 2, 4, 160, 7, nn.silu, GATE),
    Stage('inverted', 3, 1, 6, 176, 14, nn.silu, GATE),
    Stage('inverted', 3, 2, 6, 304, 18, nn.silu, GATE),
    Stage('inverted', 3, 1, 6, 512, 5, nn.silu, GATE),
)


def _row(stages: tuple[Stage, ...], stem: int, dropout: float, size: int, crop: float, half: bool) -> Architecture:
    """Return a row: channels of the stem, dropout, resolution of training, crop over resized side of the test, and
    whether mean and std are 0.5 instead of ImageNet's."""
    build = functools.partial(inverted_residuals.create, stages, stem, 1280, activation=nn.silu, epsilon=1e-3)
    return Architecture(
        build, 'classifier', 'conv_stem', 'bn2', width=stem,
        options={'dropout': dropout, 'drop_path': 0.2, 'padding': 'same'},
        mean=HALF if half else IMAGENET_MEAN, std=HALF if half else IMAGENET_STD, train_resolution=size,
        resize_ratio=1 / crop, interpolation='bicubic',
        note='statistics of the BatchNorm before the pool, and the classifier',
    )  # fmt: skip


# Sizes and channels' mean: timm 1.0.31.
ROWS = {
    'tf_efficientnetv2_b0': _row(B0, 32, 0.2, 192, 0.875, half=False),
    'tf_efficientnetv2_s': _row(S, 24, 0.2, 300, 1.0, half=True),
    'tf_efficientnetv2_m': _row(M, 24, 0.3, 384, 1.0, half=True),
}

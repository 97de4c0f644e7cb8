"""MobileNetV2 with timm's structure and names ('blocks/6/0/bn3')."""

import functools

import flax.linen as nn

from fixres_jax.models import inverted_residuals
from fixres_jax.models.architecture import Architecture
from fixres_jax.models.inverted_residuals import Stage

# Sandler et al. 2018, table 2.
STAGES = (
    Stage('separable', 3, 1, 1, 16, 1, nn.relu6),
    Stage('inverted', 3, 2, 6, 24, 2, nn.relu6),
    Stage('inverted', 3, 2, 6, 32, 3, nn.relu6),
    Stage('inverted', 3, 2, 6, 64, 4, nn.relu6),
    Stage('inverted', 3, 1, 6, 96, 3, nn.relu6),
    Stage('inverted', 3, 2, 6, 160, 3, nn.relu6),
    Stage('inverted', 3, 1, 6, 320, 1, nn.relu6),
)
create = functools.partial(inverted_residuals.create, STAGES, 32, 1280, activation=nn.relu6, epsilon=1e-5)
ROWS = {
    'mobilenetv2_100': Architecture(
        create, 'classifier', 'conv_stem', 'bn2', width=32,
        options={'dropout': 0.2, 'drop_path': 0.0, 'padding': 'symmetric'},  # dropout as torchvision's
        interpolation='bicubic', resize_ratio=1 / 0.875,
        note='statistics of the BatchNorm before the pool, and the classifier',
    ),
}  # fmt: skip

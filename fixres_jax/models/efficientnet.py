"""EfficientNet and EfficientNet-Lite with timm's structure and names ('blocks/6/0/bn3')."""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn

from fixres_jax.models import inverted_residuals
from fixres_jax.models.architecture import HALF, Architecture
from fixres_jax.models.inverted_residuals import Gate, Stage, rounded

GATE = Gate(lambda inputs, inside: round(inputs / 4), nn.silu)
# Tan and Le 2019, table 1.
STAGES = (
    Stage('separable', 3, 1, 1, 16, 1, nn.silu, GATE),
    Stage('inverted', 3, 2, 6, 24, 2, nn.silu, GATE),
    Stage('inverted', 5, 2, 6, 40, 2, nn.silu, GATE),
    Stage('inverted', 3, 2, 6, 80, 3, nn.silu, GATE),
    Stage('inverted', 5, 1, 6, 112, 3, nn.silu, GATE),
    Stage('inverted', 5, 2, 6, 192, 4, nn.silu, GATE),
    Stage('inverted', 3, 1, 6, 320, 1, nn.silu, GATE),
)
STEM, HEAD = 32, 1280


def stages_of(width_factor: float, depth_factor: float, lite: bool) -> tuple[Stage, ...]:
    """Return the stages of a network.

    Args:
      width_factor, depth_factor: channels and depths over those of b0.
      lite: without gates, with ReLU6; the first and the last stage keep their depth.
    """
    last = len(STAGES) - 1
    lighter = {'activation': nn.relu6, 'gate': None} if lite else {}
    return tuple(
        dataclasses.replace(
            stage,
            features=rounded(stage.features * width_factor),
            depth=stage.depth if lite and i in (0, last) else math.ceil(stage.depth * depth_factor),
            **lighter,
        )
        for i, stage in enumerate(STAGES)
    )


def _row(factors: tuple[float, float], dropout: float, tensorflow: bool, lite: bool, **usual: Any) -> Architecture:
    """Return a row.

    Args:
      factors: of width and depth.
      dropout: rate in training.
      tensorflow: TensorFlow's padding and epsilon instead of torch's: what the same arrays were trained with.
      lite: as in `stages_of`; stem and head keep their channels.
      **usual: how weights are usually trained and tested.
    """
    stem, head = (channels if lite else rounded(channels * factors[0]) for channels in (STEM, HEAD))
    build = functools.partial(
        inverted_residuals.create, stages_of(*factors, lite), stem, head,
        activation=nn.relu6 if lite else nn.silu, epsilon=1e-3 if tensorflow else 1e-5,
    )  # fmt: skip
    padding = 'same' if tensorflow else 'symmetric'
    return Architecture(
        build, 'classifier', 'conv_stem', 'bn2', width=stem,
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

"""MobileNetV3 with timm's structure and names ('blocks/5/0/bn3'): its last convolution follows the pool."""

import functools
from typing import Any

import flax.linen as nn

from fixres_jax.models import inverted_residuals
from fixres_jax.models.architecture import HALF, Architecture
from fixres_jax.models.inverted_residuals import Gate, Stage, rounded

GATE = Gate(lambda inputs, inside: rounded(inside / 4), nn.relu, nn.hard_sigmoid)
# Howard et al. 2019, table 1.
LARGE = (
    Stage('separable', 3, 1, 1, 16, 1, nn.relu),
    Stage('inverted', 3, 2, (4, 3), 24, 2, nn.relu),
    Stage('inverted', 5, 2, 3, 40, 3, nn.relu, GATE),
    Stage('inverted', 3, 2, (6, 2.5, 2.3, 2.3), 80, 4, nn.hard_swish),
    Stage('inverted', 3, 1, 6, 112, 2, nn.hard_swish, GATE),
    Stage('inverted', 5, 2, 6, 160, 3, nn.hard_swish, GATE),
    Stage('plain', 1, 1, 1, 960, 1, nn.hard_swish),
)
create = functools.partial(inverted_residuals.create, LARGE, 16, 1280, late_head=True, activation=nn.hard_swish)
NOTE = 'statistics of the BatchNorm before the pool, and the classifier; the convolution between them stays'


def _row(epsilon: float, padding: str, **usual: Any) -> Architecture:
    """Return a row: epsilon of BatchNorm, padding, and how weights are usually tested."""
    return Architecture(
        functools.partial(create, epsilon=epsilon), 'classifier', 'conv_stem', 'blocks/6/0/bn1', width=16,
        options={'dropout': 0.2, 'drop_path': 0.0, 'padding': padding},  # dropout as in the paper, section 6.1
        resize_ratio=1 / 0.875, note=NOTE, **usual,
    )  # fmt: skip


ROWS = {
    'mobilenetv3_large_100': _row(1e-5, 'symmetric', interpolation='bicubic'),
    'tf_mobilenetv3_large_100': _row(1e-3, 'same', mean=HALF, std=HALF),
}

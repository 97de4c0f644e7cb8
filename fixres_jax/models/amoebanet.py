"""AmoebaNet-B (Real et al. 2018), with 6 cells a stage and 512 filters that of GPipe (Huang et al. 2019)."""

import functools
from typing import Any

from fixres_jax.models import layers
from fixres_jax.models.architecture import HALF, Architecture
from fixres_jax.models.cells import BEFORE, LAST, CellNetwork, Place, Table

# Facts: tensorflow/tpu, models/official/amoeba_net, the cell named amoeba_net_b.
NORMAL = Table(
    sums=(
        (BEFORE, '1x1', BEFORE, 'max 3x3'),
        (BEFORE, 'none', LAST, 'separable 3x3'),
        (BEFORE, '1x1', LAST, 'separable 3x3'),
        (2, '1x1', 2, 'none'),
        (BEFORE, 'mean 3x3', 5, '1x1'),
    ),
    outputs=(LAST, 3, 4, 6),
)
# The 5x5 of the third sum is named a dilated one there, and no dilation reaches the convolution.
REDUCTION = Table(
    sums=(
        (LAST, 'max 2x2', LAST, 'max 3x3'),
        (2, 'none', BEFORE, '3x3'),
        (2, 'separable 5x5', 2, 'max 3x3'),
        (3, 'none', BEFORE, 'separable 3x3'),
        (4, 'mean 3x3', 3, '1x1'),
    ),
    outputs=(5, 6),
)
FILTERS, STEM, STAGES = 512, 32, 3


def create_amoebanet(num_cells: int, *, width: int, **options: Any) -> CellNetwork:
    """Create a network of the family.

    Args:
      num_cells: normal cells of each of the three stages.
      width: channels of the stem, to which all others are in proportion.
      **options: the other attributes of `CellNetwork`.
    """
    filters = FILTERS * width // STEM
    place = functools.partial(Place, padding=layers.same)
    places = [
        place('cell_stem_0', REDUCTION, filters // 4, 2, first=True),
        place('cell_stem_1', REDUCTION, filters // 2, 2),
    ]
    for stage in range(STAGES):
        features = filters * 2**stage
        if stage:
            places.append(place(f'reduction_cell_{stage - 1}', REDUCTION, features, 2))
        numbers = range(stage * num_cells, (stage + 1) * num_cells)
        places += [place(f'cell_{number}', NORMAL, features, 1) for number in numbers]
    return CellNetwork(tuple(places), width=width, **options)


def _row(num_cells: int, width: int, **usual: Any) -> Architecture:
    last = STAGES * num_cells - 1
    # Of the four parts of the last output: the projections of its two inputs, and the ends of their branches.
    seen = 'conv_prev_1x1/bn|conv_1x1/bn|comb_iter_1_right/bn_sep_2|comb_iter_2_left/bn|comb_iter_2_right/bn_sep_2'
    return Architecture(
        functools.partial(create_amoebanet, num_cells),
        classifier='last_linear',
        stem='conv_0/conv',
        last_batch_norm=f'cell_{last}/({seen}|comb_iter_4_right/bn)',
        width=width,
        options={'dropout': 0.5, 'drop_path': 0.3},
        remat=('', 'block'),
        interpolation='bicubic',
        resize_ratio=1 / 0.875,
        mean=HALF,
        std=HALF,
        note='statistics of the six BatchNorm layers of the last cell that the pool sees, and the classifier',
        **usual,
    )


ROWS = {
    'amoebanet_b': _row(num_cells=6, width=STEM, train_resolution=480),
    'amoebanet_b_small': _row(num_cells=2, width=2),
}

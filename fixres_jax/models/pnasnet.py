"""PNASNet-5-Large with timm's structure and names ('cell_11/comb_iter_0_left/bn_sep_2')."""

from typing import Any

from fixres_jax.core.errors import UsageError
from fixres_jax.models import layers
from fixres_jax.models.architecture import HALF, Architecture
from fixres_jax.models.cells import BEFORE, LAST, CellNetwork, Place, Table

# Liu et al. 2018, figure 1. The fourth sum takes the third.
CELL = Table(
    sums=(
        (BEFORE, 'separable 5x5', BEFORE, 'max 3x3'),
        (LAST, 'separable 7x7', LAST, 'max 3x3'),
        (LAST, 'separable 5x5', LAST, 'separable 3x3'),
        (4, 'separable 3x3', LAST, 'max 3x3'),
        (BEFORE, 'separable 3x3', LAST, 'none'),
    ),
    outputs=(2, 3, 4, 5, 6),
)
# Name, channels of its sums over those of the first normal cells, stride.
CELLS = (
    ('cell_stem_0', 1 / 4, 2),
    ('cell_stem_1', 1 / 2, 2),
    *((f'cell_{number}', 1, 1) for number in (0, 1, 2, 3)),
    ('cell_4', 2, 2),
    *((f'cell_{number}', 2, 1) for number in (5, 6, 7)),
    ('cell_8', 4, 2),
    *((f'cell_{number}', 4, 1) for number in (9, 10, 11)),
)
FILTERS, STEM = 216, 96


def _cropped(size: int, side: int, stride: int) -> tuple[int, int]:
    """Return the padding of cell_4 in the `cadene` network.

    A row and a column of zeros in front, symmetric padding, and the first row and column of the result cut off: that is
    `same` for an even map. An odd one comes out smaller than the 1x1 convolutions of the cell make it.
    """
    if stride > 1 and size % 2:
        raise UsageError(
            f'With padding=cadene cell_4 takes maps of even sizes, and this image gives it {size} pixels: take images '
            'of 331 pixels or of a multiple of 16, such as 384 or 480, or padding=same.'
        )
    return layers.same(size, side, stride)


# By the name of the option: the padding of all cells, and of cell_4.
PADDINGS = {'same': (layers.same, layers.same), 'cadene': (layers.symmetric, _cropped)}


def create_pnasnet(*, width: int, padding: str, **options: Any) -> CellNetwork:
    """Create a network of the family.

    Args:
      width: channels of the stem, to which all others are in proportion, rounded so that each path has whole ones.
      padding: 'same', as TensorFlow and timm pad; 'cadene', as the released FixPNASNet and pretrainedmodels do.
      **options: the other attributes of `CellNetwork`.
    """
    filters = 4 * max(1, round(FILTERS * width / STEM / 4))
    usual, of_cell_4 = PADDINGS[padding]
    places = tuple(
        Place(name, CELL, int(filters * factor), stride, of_cell_4 if name == 'cell_4' else usual, first=number == 0)
        for number, (name, factor, stride) in enumerate(CELLS)
    )
    return CellNetwork(places, width=width, **options)


ROWS = {
    'pnasnet5large': Architecture(
        create_pnasnet,
        classifier='last_linear',
        stem='conv_0/conv',
        last_batch_norm='cell_11/(conv_prev_1x1/bn|conv_1x1/bn|comb_iter_[01234]_left/bn_sep_2|comb_iter_2_right/bn_sep_2)',
        width=STEM,
        options={'dropout': 0.5, 'padding': 'same'},
        remat=('', 'block'),
        paddings=tuple(PADDINGS),
        mean=HALF,
        std=HALF,
        train_resolution=331,
        interpolation='bicubic',
        resize_ratio=1 / 0.911,
        trainable='(last_linear|cell_(9|10|11))/.*',
        batch_norm='cell_(9|10|11)/.*',
        note='in one pass, statistics of the eight BatchNorm layers of cell_11 that the pool sees, and the classifier; '
        'through the network, cells 9 to 11 and the classifier, as the reference does',
    )
}

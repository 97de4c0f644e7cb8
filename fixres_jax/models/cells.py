"""Networks of cells, as searches find them: a cell is a table of sums of two operations each."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fixres_jax.models import initializers, layers
from fixres_jax.models.convolution import Padding

# (left input, operation, right input, operation); inputs are 0, the cell before the last, 1, the last cell, and from 2
# on the sums of this cell. Operations are keys of OPERATIONS.
Sum = tuple[int, str, int, str]
BEFORE, LAST, FIRST_SUM = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Table:
    """Describe a kind of cell.

    Attributes:
      sums: in order.
      outputs: which inputs and sums are concatenated to its output, numbered as in `Sum`.
    """

    sums: tuple[Sum, ...]
    outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Place:
    """Describe a cell of a network.

    Attributes:
      name: of its module.
      table: its kind.
      features: channels of each of its sums.
      stride: of the operations on its inputs; 2 halves the map.
      padding: of its windows.
      first: whether it stands on the stem, which then is its left input without a projection.
    """

    name: str
    table: Table
    features: int
    stride: int
    padding: Padding
    first: bool = False


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Hold what all operations of a cell share.

    Attributes:
      norm: makes a BatchNorm.
      padding: of windows.
      drop_path: rate of `layers.DropPath` after each operation.
    """

    norm: Callable[..., nn.Module]
    padding: Padding
    drop_path: float

    def conv(self, features: int, side: int, stride: int = 1, **options: Any) -> layers.Conv:
        """Return a convolution in the padding of the cell."""
        kernel = _initializer(options.get('groups', 1))
        return layers.Conv(features, side, stride, padding=self.padding, initializer=kernel, **options)


def _initializer(groups: int = 1) -> initializers.Initializer:
    """Return TensorFlow's initialisation of a kernel, whose outputs are those of its own group."""
    return initializers.fan_out(2.0 * groups, initializers.UNIT_TRUNCATED_NORMAL)


class SeparableConv(nn.Module):
    """Convolve by channel, then mix the channels."""

    pieces: Pieces
    features: int
    side: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[-1]
        x = self.pieces.conv(inputs, self.side, self.stride, groups=inputs, name='depthwise_conv2d')(x)
        return self.pieces.conv(self.features, 1, name='pointwise_conv2d')(x)


def _separable(pieces: Pieces, x: jax.Array, mode: layers.Mode, features: int, stride: int, *, side: int) -> jax.Array:
    """Apply twice ReLU, separable convolution, BatchNorm; the first has the stride."""
    for number, step in ((1, stride), (2, 1)):
        x = SeparableConv(pieces, features, side, step, name=f'separable_{number}')(nn.relu(x))
        x = pieces.norm(name=f'bn_sep_{number}')(x, mode)
    return x


def _pointwise(pieces: Pieces, x: jax.Array, mode: layers.Mode, features: int, stride: int) -> jax.Array:
    """Apply ReLU, 1x1 convolution, BatchNorm."""
    return pieces.norm(name='bn')(pieces.conv(features, 1, stride, name='conv')(nn.relu(x)), mode)


def _bottleneck(pieces: Pieces, x: jax.Array, mode: layers.Mode, features: int, stride: int) -> jax.Array:
    """Apply ReLU, convolution, BatchNorm three times: 1x1 to a quarter of the channels, 3x3 with the stride, 1x1."""
    inner = features // 4
    for prefix, channels, side, step in (('pre_', inner, 1, 1), ('', inner, 3, stride), ('post_', features, 1, 1)):
        x = pieces.conv(channels, side, step, name=f'{prefix}conv')(nn.relu(x))
        x = pieces.norm(name=f'{prefix}bn')(x, mode)
    return x


def _identity(pieces: Pieces, x: jax.Array, mode: layers.Mode, features: int, stride: int) -> jax.Array:
    """Leave a map as it is where its shape fits."""
    return _pointwise(pieces, x, mode, features, stride) if stride > 1 or x.shape[-1] != features else x


def _pool(
    pieces: Pieces, x: jax.Array, mode: layers.Mode, features: int, stride: int, *, side: int, pool: Callable
) -> jax.Array:
    """Pool, and bring to the number of channels where that differs."""
    x = pool(x, side, stride, pieces.padding)
    if x.shape[-1] == features:
        return x
    return pieces.norm(name='bn')(pieces.conv(features, 1, name='conv')(x), mode)


_mean = functools.partial(layers.avg_pool, count_include_pad=False)
OPERATIONS: dict[str, Callable[..., jax.Array]] = {
    'none': _identity,
    '1x1': _pointwise,
    '3x3': _bottleneck,
    'separable 3x3': functools.partial(_separable, side=3),
    'separable 5x5': functools.partial(_separable, side=5),
    'separable 7x7': functools.partial(_separable, side=7),
    'max 2x2': functools.partial(_pool, side=2, pool=layers.max_pool),
    'max 3x3': functools.partial(_pool, side=3, pool=layers.max_pool),
    'mean 3x3': functools.partial(_pool, side=3, pool=_mean),
}


class Operation(nn.Module):
    """Apply one operation of a table: a module of its own, so that its layers have names of their own."""

    operation: str
    pieces: Pieces
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        y = OPERATIONS[self.operation](self.pieces, x, mode, self.features, self.stride)
        return y if self.operation == 'none' else layers.DropPath(self.pieces.drop_path, name='drop_path')(y, mode)


class Path(nn.Module):
    """One half of a reduction: every other pixel, from the first or from the second on."""

    pieces: Pieces
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.pieces.conv(self.features, 1, name='conv')(x[:, ::2, ::2])


class FactorizedReduction(nn.Module):
    """Halve a map without windows: two grids of pixels, a row and a column apart, each for half of the channels."""

    pieces: Pieces
    features: int

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        x, half = nn.relu(x), self.features // 2
        shifted = jnp.pad(x[:, 1:, 1:], ((0, 0), (0, 1), (0, 1), (0, 0)))
        grids = (
            Path(self.pieces, half, name='path_1')(x),
            Path(self.pieces, self.features - half, name='path_2')(shifted),
        )
        return self.pieces.norm(name='final_path_bn')(jnp.concatenate(grids, -1), mode)


class Cell(nn.Module):
    """Compute the sums of a table from the outputs of two cells.

    Attributes:
      place: which cell.
      pieces: of its operations.
    """

    place: Place
    pieces: Pieces

    @nn.compact
    def __call__(self, before: jax.Array, last: jax.Array, mode: layers.Mode) -> jax.Array:
        features, pieces = self.place.features, self.pieces
        if not self.place.first:
            if before.shape[1:3] != last.shape[1:3]:
                before = FactorizedReduction(pieces, features, name='conv_prev_1x1')(before, mode)
            elif before.shape[-1] != features:
                before = Operation('1x1', self._whole, features, 1, name='conv_prev_1x1')(before, mode)
        states = [before, Operation('1x1', self._whole, features, 1, name='conv_1x1')(last, mode)]
        for number, (*left, right, operation) in enumerate(self.place.table.sums):
            branches = []
            for side, (index, kind) in (('left', left), ('right', (right, operation))):
                stride = self.place.stride if index < FIRST_SUM else 1
                branch = Operation(kind, pieces, features, stride, name=f'comb_iter_{number}_{side}')
                branches.append(branch(states[index], mode))
            states.append(branches[0] + branches[1])
        return jnp.concatenate([states[index] for index in self.place.table.outputs], -1)

    @property
    def _whole(self) -> Pieces:
        return dataclasses.replace(self.pieces, drop_path=0.0)


class Stem(nn.Module):
    """Convolve the image by 3x3 with stride 2 and no padding, then BatchNorm."""

    norm: Callable[..., nn.Module]
    features: int

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        conv = layers.Conv(self.features, 3, 2, padding=layers.valid, initializer=_initializer(), name='conv')
        return self.norm(name='bn')(conv(x), mode)


class CellNetwork(nn.Module):
    """Stack cells on a stem; each takes the outputs of the two before it.

    Attributes:
      places: the cells, in order.
      width: channels of the stem.
      num_classes: number of logits.
      mean, std: of the RGB channels, in [0, 1].
      dropout: rate of numbers of the embedding left out in training.
      drop_path: rate of each operation of a cell left out in training, image by image.
      epsilon: of BatchNorm.
      dtype: of the activations; parameters, statistics, embeddings and logits are float32.
      bn_group_size: number of images that share BatchNorm statistics; None for the whole batch.
      remat: as in `resnet.ResNet`; a cell is a block, and there are no stages.
    """

    places: tuple[Place, ...]
    width: int
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dropout: float
    drop_path: float = 0.0
    epsilon: float = 1e-3
    dtype: Any = jnp.float32
    bn_group_size: int | None = 64
    remat: str = ''

    @nn.compact
    def __call__(self, images: jax.Array, mode: layers.Mode) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and what they were computed from; arguments and values as `resnet.ResNet`."""
        norm = functools.partial(layers.BatchNorm, self.bn_group_size, epsilon=self.epsilon, momentum=0.1)
        make_cell = nn.remat(Cell) if self.remat == 'block' else Cell
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        before = last = Stem(norm, self.width, name='conv_0')(x, mode)
        for place in self.places:
            cell = make_cell(place, Pieces(norm, place.padding, self.drop_path), name=place.name)
            before, last = last, cell(before, last, mode)
        x = nn.relu(last)
        embedding = x.astype(jnp.float32).mean((1, 2))
        kept = layers.Dropout(self.dropout, name='dropout')(embedding, mode)
        logits = layers.Classifier(self.num_classes, name='last_linear')(kept)
        return logits, {'features': x, 'embedding': embedding}

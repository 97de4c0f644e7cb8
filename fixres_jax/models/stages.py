"""Stages: blocks of one width in a row."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from fixres_jax.models.layers import Mode, linear_rates


class Stage(nn.Module):
    """Blocks of one width, of which the first carries the stride.

    Attributes:
      block: class of the blocks, called with (maps, mode).
      depth: number of blocks.
      stride: of the first.
      options: the other attributes of all blocks.
      remat: 'block' lets the backward pass compute again what is inside each block.
      names: format of the blocks' names.
      first: number of the first block.
      drop_paths: rate of drop path of each block; () where the blocks have none.
    """

    block: type[nn.Module]
    depth: int
    stride: int
    options: tuple[tuple[str, Any], ...]
    remat: str
    names: str = '{}'
    first: int = 0
    drop_paths: tuple[float, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        block = nn.remat(self.block) if self.remat == 'block' else self.block
        for i in range(self.depth):
            name = self.names.format(i + self.first)
            own = {'drop_path': self.drop_paths[i]} if self.drop_paths else {}
            x = block(stride=self.stride if i == 0 else 1, **dict(self.options), **own, name=name)(x, mode)
        return x


def make_stage(
    block: type[nn.Module], depth: int, stride: int, options: Mapping[str, Any], remat: str, **others: Any
) -> nn.Module:
    """Return a `Stage`, which the backward pass computes again where remat is 'stage'."""
    stage = nn.remat(Stage) if remat == 'stage' else Stage
    return stage(block, depth, stride, tuple(options.items()), remat, **others)


def rates_of_stages(rate: float, depths: Sequence[int]) -> list[tuple[float, ...]]:
    """Return the rates of drop path of the blocks of each stage, which rise from 0 in the first block to `rate`.

    >>> rates_of_stages(0.2, (1, 2))
    [(0.0,), (0.1, 0.2)]
    """
    rates = iter(linear_rates(rate, sum(depths)))
    return [tuple(itertools.islice(rates, depth)) for depth in depths]

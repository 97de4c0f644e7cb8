"""Stages: blocks of one width in a row."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from fixres_jax.models.layers import Mode


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
    """

    block: type[nn.Module]
    depth: int
    stride: int
    options: tuple[tuple[str, Any], ...]
    remat: str
    names: str = '{}'
    first: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        block = nn.remat(self.block) if self.remat == 'block' else self.block
        for i in range(self.depth):
            name = self.names.format(i + self.first)
            x = block(stride=self.stride if i == 0 else 1, **dict(self.options), name=name)(x, mode)
        return x


def make_stage(
    block: type[nn.Module], depth: int, stride: int, options: Mapping[str, Any], remat: str, **others: Any
) -> nn.Module:
    """Return a `Stage`, which the backward pass computes again where remat is 'stage'."""
    stage = nn.remat(Stage) if remat == 'stage' else Stage
    return stage(block, depth, stride, tuple(options.items()), remat, **others)

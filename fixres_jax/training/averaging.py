"""The moving average of the parameters that train."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fixres_jax.core import sections
from fixres_jax.core.sections import Section


@dataclasses.dataclass(frozen=True)
class Averaging(Section):
    """The section `train.ema`."""

    PATH = 'train.ema.'
    RULES = {
        'decay': sections.share(0.9999),
        'start_epochs': sections.least(0, 0.0),
        'every_steps': sections.least(1, 1),
    }

    decay: float
    warmup: bool
    start_epochs: float
    every_steps: int


@dataclasses.dataclass(frozen=True)
class Average:
    """Say how an average moves.

    Attributes:
      decay: share of the old average.
      warmup: whether the decay rises to that from zero, as 1 - (1 + n) ** (-2 / 3) of the n-th change.
      start_step: until then the average is a copy of the parameters.
      every_steps: it moves at steps that are multiples of this.

    Source: timm's ModelEmaV3; `every_steps` is of torchvision's.
    """

    decay: float
    warmup: bool = False
    start_step: int = 0
    every_steps: int = 1

    def weight(self, step: jax.Array) -> jax.Array:
        """Return the share of the parameters in the average after a step, the first of which is 1."""
        number = step // self.every_steps - self.start_step // self.every_steps - 1
        decay = jnp.asarray(self.decay, jnp.float32)
        if self.warmup:
            decay = jnp.minimum(decay, 1 - (1.0 + jnp.maximum(number, 0)) ** (-2 / 3))
        weight = jnp.where(number > 0, 1 - decay, 1.0)
        return jnp.where(step % self.every_steps == 0, weight, 0.0)

    def move(self, average: Any, params: Any, step: jax.Array) -> Any:
        """Return the average after a step that has left these parameters."""
        weight = self.weight(step)
        # In this form a weight of 0 leaves the average as it is, bit by bit, and one of 1 makes a copy.
        return jax.tree.map(lambda old, new: (1 - weight) * old + weight * new, average, params)

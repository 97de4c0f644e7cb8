"""A network of two convolutions, for tests of what does not depend on the network."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from fixres_jax.models import Architecture, Model, layers

EPSILON = 0.05


class Toy(nn.Module):
    """Two convolutions, one BatchNorm, whose names and numbers are those of no ResNet."""

    num_classes: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: Any = jnp.float32
    bn_group_size: int | None = None
    remat: str = ''
    zero_init_residual: bool = False

    @nn.compact
    def __call__(self, images, mode):
        x = nn.relu(
            layers.Conv(self.width, 3, 2, padding=layers.symmetric, name='begin')(
                layers.normalize(images, self.mean, self.std, self.dtype)
            )
        )
        x = layers.Conv(2 * self.width, 3, 2, padding=layers.symmetric, name='middle')(x)
        x = nn.relu(layers.BatchNorm(self.bn_group_size, EPSILON, momentum=0.3, name='norm')(x, mode))
        embedding = x.astype(jnp.float32).mean((1, 2))
        return layers.Classifier(self.num_classes, name='head')(embedding), {'features': x, 'embedding': embedding}


TOY = Architecture(
    Toy, 'head', 'begin', 'norm', width=6, min_resolution=12, stride=4, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25),
    train_resolution=28, interpolation='bicubic', resize_ratio=1.0,
)  # fmt: skip


def make_toy(num_classes: int = 4, bn_group_size: int | None = None, width: int = TOY.width) -> Model:
    """Return a model of the architecture, which compiles in a moment."""
    own = {'width': width, 'mean': TOY.mean, 'std': TOY.std}
    return Model(TOY, TOY.build(num_classes=num_classes, bn_group_size=bn_group_size, **own))

"""Models: architectures by name, a row each; a file a family.

May import core.
"""

from functools import partial
from typing import Any

from fixres_jax.core.errors import UsageError, nearest
from fixres_jax.models.architecture import Architecture, Model, Variables
from fixres_jax.models.layers import EVAL, TRAIN, Mode, batch_norm_layers
from fixres_jax.models.resnet import BasicBlock, Bottleneck, create_resnet

__all__ = [
    'ARCHITECTURES', 'EVAL', 'TRAIN', 'Architecture', 'Mode', 'Model', 'Variables', 'batch_norm_layers', 'create',
    'find',
]  # fmt: skip


def _resnet(last_batch_norm: str, *shape: Any, **options: Any) -> Architecture:
    return Architecture(partial(create_resnet, *shape, **options), 'fc', 'conv1', last_batch_norm)


ARCHITECTURES: dict[str, Architecture] = {
    'resnet18': _resnet('layer4/1/bn2', BasicBlock, (2, 2, 2, 2)),
    'resnet34': _resnet('layer4/2/bn2', BasicBlock, (3, 4, 6, 3)),
    'resnet50': _resnet('layer4/2/bn3', Bottleneck, (3, 4, 6, 3)),
    'resnet101': _resnet('layer4/2/bn3', Bottleneck, (3, 4, 23, 3)),
    'resnet152': _resnet('layer4/2/bn3', Bottleneck, (3, 8, 36, 3)),
    'wide_resnet50_2': _resnet('layer4/2/bn3', Bottleneck, (3, 4, 6, 3), base_width=128),
    'wide_resnet101_2': _resnet('layer4/2/bn3', Bottleneck, (3, 4, 23, 3), base_width=128),
    'resnext50_32x4d': _resnet('layer4/2/bn3', Bottleneck, (3, 4, 6, 3), groups=32, base_width=4),
    'resnext101_32x4d': _resnet('layer4/2/bn3', Bottleneck, (3, 4, 23, 3), groups=32, base_width=4),
    'resnext101_32x8d': _resnet('layer4/2/bn3', Bottleneck, (3, 4, 23, 3), groups=32, base_width=8),
    'resnext101_64x4d': _resnet('layer4/2/bn3', Bottleneck, (3, 4, 23, 3), groups=64, base_width=4),
    'resnext101_32x16d': _resnet('layer4/2/bn3', Bottleneck, (3, 4, 23, 3), groups=32, base_width=16),
    'resnext101_32x32d': _resnet('layer4/2/bn3', Bottleneck, (3, 4, 23, 3), groups=32, base_width=32),
    'resnext101_32x48d': _resnet('layer4/2/bn3', Bottleneck, (3, 4, 23, 3), groups=32, base_width=48),
}


def find(name: str) -> Architecture:
    """Return the architecture of a name.

    Raises:
      UsageError: when there is none, naming the nearest.
    """
    if name not in ARCHITECTURES:
        known = ', '.join(ARCHITECTURES)
        raise UsageError(f'There is no model {name!r}.{nearest(name, ARCHITECTURES)} The models are: {known}.')
    return ARCHITECTURES[name]


def create(name: str, num_classes: int = 1000, **options: Any) -> Model:
    """Create a model, without weights.

    Args:
      name: a key of ARCHITECTURES.
      num_classes: number of logits.
      **options: of the family, see `Architecture.build`; what is not given is the published network's.

    Returns:
      The model; `model.init(key)` draws its variables.

    Raises:
      UsageError: for an unknown name or a size that makes no network.
    """
    architecture = find(name)
    defaults = {'mean': architecture.mean, 'std': architecture.std, 'width': architecture.width}
    # Tuples, or the module could not be hashed.
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in (defaults | options).items()}
    if num_classes < 1:
        raise UsageError(f'num_classes={num_classes} makes no network: it is at least 1.')
    return Model(architecture, architecture.build(num_classes=num_classes, **options))

"""Architectures by name: what each is made of, and what fine-tuning it means."""

from functools import partial
from typing import Any

import flax.linen as nn

from fixres_jax.errors import UsageError, nearest
from fixres_jax.models.layers import EVAL, TRAIN, Mode, batch_norm_layers
from fixres_jax.models.resnet import IMAGENET_MEAN, IMAGENET_STD, BasicBlock, Bottleneck, ResNet

__all__ = [
    'EVAL', 'FINETUNE', 'IMAGENET_MEAN', 'IMAGENET_STD', 'MIN_RESOLUTION', 'MODELS', 'Mode', 'TRAIN',
    'batch_norm_layers', 'create',
]  # fmt: skip

# Every architecture halves its maps five times.
MIN_RESOLUTION = 32
# The linear layer after the pool.
CLASSIFIER = 'fc'

# What the backward pass may compute again instead of keeping it.
REMAT = ('', 'block', 'stage')

MODELS = {
    'resnet18': partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    'resnet34': partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    'resnet50': partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    'resnet101': partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    'resnet152': partial(ResNet, Bottleneck, (3, 8, 36, 3)),
    'wide_resnet50_2': partial(ResNet, Bottleneck, (3, 4, 6, 3), base_width=128),
    'wide_resnet101_2': partial(ResNet, Bottleneck, (3, 4, 23, 3), base_width=128),
    'resnext50_32x4d': partial(ResNet, Bottleneck, (3, 4, 6, 3), groups=32, base_width=4),
    'resnext101_32x4d': partial(ResNet, Bottleneck, (3, 4, 23, 3), groups=32, base_width=4),
    'resnext101_32x8d': partial(ResNet, Bottleneck, (3, 4, 23, 3), groups=32, base_width=8),
    'resnext101_64x4d': partial(ResNet, Bottleneck, (3, 4, 23, 3), groups=64, base_width=4),
    'resnext101_32x16d': partial(ResNet, Bottleneck, (3, 4, 23, 3), groups=32, base_width=16),
    'resnext101_32x32d': partial(ResNet, Bottleneck, (3, 4, 23, 3), groups=32, base_width=32),
    'resnext101_32x48d': partial(ResNet, Bottleneck, (3, 4, 23, 3), groups=32, base_width=48),
}

# What the fine-tuning step trains, and the BatchNorm whose statistics it moves: the last before the pool.
# Source: imnet_finetune of the reference, which names layer4[2].bn3; basic blocks end with bn2.
FINETUNE = {name: {'trainable': 'fc/.*', 'batch_norm': 'layer4/2/bn3'} for name in MODELS} | {
    'resnet18': {'trainable': 'fc/.*', 'batch_norm': 'layer4/1/bn2'},
    'resnet34': {'trainable': 'fc/.*', 'batch_norm': 'layer4/2/bn2'},
}


def create(name: str, num_classes: int = 1000, **options: Any) -> nn.Module:
    """Create a model: a frozen, hashable description without weights.

    Args:
      name: a key of MODELS.
      num_classes: number of logits.
      **options: dtype, bn_group_size, zero_init_residual, width, mean, std and remat, as in `resnet.ResNet`.

    Returns:
      A module. `model.init(key, images, EVAL)` makes its variables, {'params', 'batch_stats'}.

    Raises:
      UsageError: for an unknown name or a size that makes no network.
    """
    if name not in MODELS:
        known = ', '.join(MODELS)
        raise UsageError(f'There is no model {name!r}.{nearest(name, MODELS)} The models are: {known}.')
    options = {key: tuple(value) if key in ('mean', 'std') else value for key, value in options.items()}
    model = MODELS[name](num_classes=num_classes, **options)
    for field in ('num_classes', 'width', 'bn_group_size'):
        value = getattr(model, field)
        if value is not None and value < 1:
            raise UsageError(f'{field}={value} makes no network: it is at least 1.')
    if model.remat not in REMAT:
        raise UsageError(f'remat={model.remat!r} is none of {REMAT}.{nearest(model.remat, REMAT)}')
    if int(model.width * model.base_width / 64) < 1:
        raise UsageError(
            f'{name} with width={model.width} has no channels in its groups: '
            f'width is at least {-(-64 // model.base_width)}.'
        )
    return model

"""ResNet and its relatives with the structure and names of torchvision and timm ('layer4/2/bn3')."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fixres_jax.core.errors import UsageError
from fixres_jax.models import layers
from fixres_jax.models.architecture import Architecture
from fixres_jax.models.resnet_blocks import (
    BasicBlock,
    BatchNorm,
    Bottleneck,
    Conv,
    DeepStem,
    Gate,
    StridedConv,
    channel_attention,
    no_gate,
    squeeze_excite,
)
from fixres_jax.models.stages import make_stage, rates_of_stages


def average_pool(x: jax.Array, mode: layers.Mode, bn_group_size: int | None) -> tuple[jax.Array, jax.Array]:
    """Return (maps, float32 embedding: their mean over all positions)."""
    del mode, bn_group_size
    return x, x.astype(jnp.float32).mean((1, 2))


class ResNet(nn.Module):
    """Classify images of 32 pixels a side or more.

    Attributes:
      block: BasicBlock or Bottleneck.
      depths: number of blocks of each of the four stages.
      groups: of the 3x3 convolutions.
      base_width: channels of each group in the first stage, for a `width` of 64.
      num_classes: number of logits.
      dtype: of the activations; parameters, statistics, embeddings and logits are float32.
      bn_group_size: number of images that share BatchNorm statistics; None for the whole batch.
      zero_init_residual: start the last BatchNorm of every block from a scale of zero.
      width: channels of the stem, to which all others are in proportion.
      mean: of the RGB channels, in [0, 1].
      std: of the RGB channels, in [0, 1].
      remat: whose activations the backward pass computes again instead of keeping them: '' nothing's, 'block' those
        inside each block, 'stage' those inside each stage.
      deep_stem: three convolutions in the stem.
      strided_conv: a convolution instead of the max-pool.
      average: as in `Downsample`.
      gate: as in `BasicBlock`.
      last_stride: of the last stage.
      drop_path: rate of the branch of the last block left out in training; earlier blocks' are in proportion.
      pool: function (maps, mode, bn_group_size) -> (features, embedding), as `average_pool`.
    """

    block: type[nn.Module]
    depths: tuple[int, ...]
    num_classes: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    groups: int = 1
    base_width: int = 64
    dtype: Any = jnp.float32
    bn_group_size: int | None = 64
    zero_init_residual: bool = False
    remat: str = ''
    deep_stem: bool = False
    strided_conv: bool = False
    average: bool = False
    gate: Gate = no_gate
    last_stride: int = 2
    drop_path: float = 0.0
    pool: Callable[..., tuple[jax.Array, jax.Array]] = average_pool

    @nn.compact
    def __call__(self, images: jax.Array, mode: layers.Mode) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return logits and what they were computed from.

        Args:
          images: uint8[B, H, W, 3], normalized here, or floating and already normalized.
          mode: which BatchNorm layers run on batch statistics.

        Returns:
          (logits float32[B, K], {'features': dtype[B, h, w, C], 'embedding': float32[B, C]}).

        Raises:
          UsageError: when batch statistics are asked of a batch that `bn_group_size` does not divide.
        """
        x = layers.normalize(images, self.mean, self.std, self.dtype)
        if self.deep_stem:
            x = DeepStem(self.width, self.bn_group_size, name='conv1')(x, mode)
        else:
            x = Conv(self.width, 7, 2, name='conv1')(x)
        x = nn.relu(BatchNorm(self.bn_group_size, name='bn1')(x, mode))
        if self.strided_conv:
            x = StridedConv(self.bn_group_size, name='maxpool')(x, mode)
        else:
            x = layers.max_pool(x, 3, 2, layers.symmetric)
        rates = rates_of_stages(self.drop_path, self.depths)
        for i, depth in enumerate(self.depths):
            planes = self.width * 2**i
            options = {
                'planes': planes,
                'inner': int(planes * self.base_width / 64) * self.groups,
                'groups': self.groups,
                'bn_group_size': self.bn_group_size,
                'zero_init_residual': self.zero_init_residual,
                'average': self.average,
                'gate': self.gate,
            }
            stride = (1, 2, 2, self.last_stride)[i]
            others = {'drop_paths': rates[i], 'name': f'layer{i + 1}'}
            x = make_stage(self.block, depth, stride, options, self.remat, **others)(x, mode)
        x, embedding = self.pool(x, mode, self.bn_group_size)
        logits = layers.Classifier(self.num_classes, name='fc')(embedding)
        return logits, {'features': x, 'embedding': embedding}


def create_resnet(block: type[nn.Module], depths: tuple[int, ...], **options: Any) -> ResNet:
    """Create a network of the family; raise UsageError for options that make none.

    Args:
      block: BasicBlock or Bottleneck.
      depths: number of blocks of each of the four stages.
      **options: the other attributes of `ResNet`.
    """
    model = ResNet(block, depths, **options)
    if int(model.width * model.base_width / 64) < 1:
        raise UsageError(
            f'A network with groups of {model.base_width} channels has none left at width={model.width}: '
            f'width is at least {-(-64 // model.base_width)}.'
        )
    if model.deep_stem and model.width < 2:
        raise UsageError('width=1 leaves half a channel to the first convolutions of this stem: width is at least 2.')
    return model


def row(
    last_batch_norm: str, *shape: Any, note: str = '', usual: Mapping[str, Any] | None = None, **options: Any
) -> Architecture:
    """Return a row: of a block, depths and the attributes of `ResNet`, and how its weights are usually trained."""
    stem = 'conv1/6' if options.get('deep_stem') else 'conv1'
    return Architecture(
        functools.partial(create_resnet, *shape, **options), 'fc', stem, last_batch_norm,
        options={'zero_init_residual': False, 'drop_path': 0.0}, note=note or NOTE, **(usual or {}),
    )  # fmt: skip


def _sizes(train: int, crop: float) -> dict[str, Any]:
    """Return how timm trains and tests: resolution of training, crop over resized side of the test."""
    return {'train_resolution': train, 'resize_ratio': 1 / crop, 'interpolation': 'bicubic'}


NOTE = 'statistics of the BatchNorm that ends the last block, and the classifier'
GATED = 'statistics of the BatchNorm that ends the last block, before its gate, and the classifier'
D = {'deep_stem': True, 'average': True}
SE = {'gate': squeeze_excite, 'note': GATED}
RS = D | {'strided_conv': True, 'gate': functools.partial(squeeze_excite, share=1 / 4), 'note': GATED}
ROWS = {
    'resnet18': row('layer4/1/bn2', BasicBlock, (2, 2, 2, 2)),
    'resnet34': row('layer4/2/bn2', BasicBlock, (3, 4, 6, 3)),
    'resnet50': row('layer4/2/bn3', Bottleneck, (3, 4, 6, 3)),
    'resnet101': row('layer4/2/bn3', Bottleneck, (3, 4, 23, 3)),
    'resnet152': row('layer4/2/bn3', Bottleneck, (3, 8, 36, 3)),
    'wide_resnet50_2': row('layer4/2/bn3', Bottleneck, (3, 4, 6, 3), base_width=128),
    'wide_resnet101_2': row('layer4/2/bn3', Bottleneck, (3, 4, 23, 3), base_width=128),
    'resnext50_32x4d': row('layer4/2/bn3', Bottleneck, (3, 4, 6, 3), groups=32, base_width=4),
    'resnext101_32x4d': row('layer4/2/bn3', Bottleneck, (3, 4, 23, 3), groups=32, base_width=4),
    'resnext101_32x8d': row('layer4/2/bn3', Bottleneck, (3, 4, 23, 3), groups=32, base_width=8),
    'resnext101_64x4d': row('layer4/2/bn3', Bottleneck, (3, 4, 23, 3), groups=64, base_width=4),
    'resnext101_32x16d': row('layer4/2/bn3', Bottleneck, (3, 4, 23, 3), groups=32, base_width=16),
    'resnext101_32x32d': row('layer4/2/bn3', Bottleneck, (3, 4, 23, 3), groups=32, base_width=32),
    'resnext101_32x48d': row('layer4/2/bn3', Bottleneck, (3, 4, 23, 3), groups=32, base_width=48),
    # He et al. 2019 (arXiv 1812.01187): a deep stem, and means in the shortcut.
    'resnet18d': row('layer4/1/bn2', BasicBlock, (2, 2, 2, 2), **D, usual=_sizes(224, 0.875)),
    'resnet34d': row('layer4/2/bn2', BasicBlock, (3, 4, 6, 3), **D, usual=_sizes(224, 0.875)),
    'resnet50d': row('layer4/2/bn3', Bottleneck, (3, 4, 6, 3), **D, usual=_sizes(224, 0.875)),
    'resnet101d': row('layer4/2/bn3', Bottleneck, (3, 4, 23, 3), **D, usual=_sizes(256, 0.95)),
    'resnet152d': row('layer4/2/bn3', Bottleneck, (3, 8, 36, 3), **D, usual=_sizes(256, 0.95)),
    # Hu et al. 2018 (arXiv 1709.01507).
    'seresnet50': row('layer4/2/bn3', Bottleneck, (3, 4, 6, 3), **SE, usual=_sizes(224, 0.875)),
    'seresnext50_32x4d': row(
        'layer4/2/bn3', Bottleneck, (3, 4, 6, 3), groups=32, base_width=4, **SE, usual=_sizes(224, 0.875)
    ),
    'seresnext101_32x8d': row(
        'layer4/2/bn3', Bottleneck, (3, 4, 23, 3), groups=32, base_width=8, **SE, usual=_sizes(224, 0.95)
    ),
    # Wang et al. 2020 (arXiv 1910.03151).
    'ecaresnet50d': row(
        'layer4/2/bn3', Bottleneck, (3, 4, 6, 3), **D, gate=channel_attention, note=GATED, usual=_sizes(224, 0.875)
    ),
    # Bello et al. 2021 (arXiv 2103.07579).
    'resnetrs50': row('layer4/2/bn3', Bottleneck, (3, 4, 6, 3), **RS, usual=_sizes(160, 0.91)),
    'resnetrs101': row('layer4/2/bn3', Bottleneck, (3, 4, 23, 3), **RS, usual=_sizes(192, 0.94)),
    'resnetrs152': row('layer4/2/bn3', Bottleneck, (3, 8, 36, 3), **RS, usual=_sizes(256, 1.0)),
}

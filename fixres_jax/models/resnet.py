"""ResNet, wide ResNet and ResNeXt with torchvision's structure and names ('layer4/2/bn3')."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fixres_jax.core.errors import UsageError
from fixres_jax.models import layers
from fixres_jax.models.architecture import Architecture

# torch's defaults, with which every released weight of the family was trained.
BatchNorm = functools.partial(layers.BatchNorm, epsilon=1e-5, momentum=0.1)
Conv = functools.partial(layers.Conv, padding=layers.symmetric)


class Downsample(nn.Module):
    """Bring the shortcut to the shape of the block's output: a 1x1 convolution and a BatchNorm."""

    features: int
    stride: int
    bn_group_size: int | None

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        x = Conv(self.features, 1, self.stride, name='0')(x)
        return BatchNorm(self.bn_group_size, name='1')(x, mode)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut.

    Attributes:
      planes: channels of the block before its expansion.
      inner: channels of its 3x3 convolution, which differ from `planes` in wide ResNets and ResNeXts.
      stride: of the 3x3 convolution (the first one here).
      groups: of the 3x3 convolution.
      bn_group_size: as in `layers.BatchNorm`.
      zero_init_residual: start the last BatchNorm's scale from zero.
    """

    planes: int
    inner: int
    stride: int
    groups: int
    bn_group_size: int | None
    zero_init_residual: bool
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        y = Conv(self.inner, 3, self.stride, self.groups, name='conv1')(x)
        y = nn.relu(BatchNorm(self.bn_group_size, name='bn1')(y, mode))
        y = Conv(self.planes, 3, groups=self.groups, name='conv2')(y)
        y = BatchNorm(self.bn_group_size, zero_scale=self.zero_init_residual, name='bn2')(y, mode)
        if x.shape[-1] != self.planes:
            x = Downsample(self.planes, self.stride, self.bn_group_size, name='downsample')(x, mode)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions around a shortcut; attributes as in `BasicBlock`."""

    planes: int
    inner: int
    stride: int
    groups: int
    bn_group_size: int | None
    zero_init_residual: bool
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        features = self.planes * self.expansion
        y = Conv(self.inner, 1, name='conv1')(x)
        y = nn.relu(BatchNorm(self.bn_group_size, name='bn1')(y, mode))
        y = Conv(self.inner, 3, self.stride, self.groups, name='conv2')(y)
        y = nn.relu(BatchNorm(self.bn_group_size, name='bn2')(y, mode))
        y = Conv(features, 1, name='conv3')(y)
        y = BatchNorm(self.bn_group_size, zero_scale=self.zero_init_residual, name='bn3')(y, mode)
        if x.shape[-1] != features:
            x = Downsample(features, self.stride, self.bn_group_size, name='downsample')(x, mode)
        return nn.relu(x + y)


class Stage(nn.Module):
    """Blocks '0', '1', ... of one width, of which the first carries the stride."""

    block: type[nn.Module]
    depth: int
    stride: int
    options: tuple[tuple[str, Any], ...]
    remat: str

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        block = nn.remat(self.block) if self.remat == 'block' else self.block
        for i in range(self.depth):
            x = block(stride=self.stride if i == 0 else 1, **dict(self.options), name=str(i))(x, mode)
        return x


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
        x = Conv(self.width, 7, 2, name='conv1')(x)
        x = nn.relu(BatchNorm(self.bn_group_size, name='bn1')(x, mode))
        x = layers.max_pool(x, 3, 2, layers.symmetric)
        make_stage = nn.remat(Stage) if self.remat == 'stage' else Stage
        for i, depth in enumerate(self.depths):
            planes = self.width * 2**i
            options = {
                'planes': planes,
                'inner': int(planes * self.base_width / 64) * self.groups,
                'groups': self.groups,
                'bn_group_size': self.bn_group_size,
                'zero_init_residual': self.zero_init_residual,
            }
            stride = 1 if i == 0 else 2
            stage = make_stage(self.block, depth, stride, tuple(options.items()), self.remat, name=f'layer{i + 1}')
            x = stage(x, mode)
        embedding = x.astype(jnp.float32).mean((1, 2))
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
    return model


def _row(last_batch_norm: str, *shape: Any, **options: Any) -> Architecture:
    build = functools.partial(create_resnet, *shape, **options)
    return Architecture(build, 'fc', 'conv1', last_batch_norm, options={'zero_init_residual': False}, note=NOTE)


NOTE = 'statistics of the BatchNorm that ends the last block, and the classifier'
ROWS = {
    'resnet18': _row('layer4/1/bn2', BasicBlock, (2, 2, 2, 2)),
    'resnet34': _row('layer4/2/bn2', BasicBlock, (3, 4, 6, 3)),
    'resnet50': _row('layer4/2/bn3', Bottleneck, (3, 4, 6, 3)),
    'resnet101': _row('layer4/2/bn3', Bottleneck, (3, 4, 23, 3)),
    'resnet152': _row('layer4/2/bn3', Bottleneck, (3, 8, 36, 3)),
    'wide_resnet50_2': _row('layer4/2/bn3', Bottleneck, (3, 4, 6, 3), base_width=128),
    'wide_resnet101_2': _row('layer4/2/bn3', Bottleneck, (3, 4, 23, 3), base_width=128),
    'resnext50_32x4d': _row('layer4/2/bn3', Bottleneck, (3, 4, 6, 3), groups=32, base_width=4),
    'resnext101_32x4d': _row('layer4/2/bn3', Bottleneck, (3, 4, 23, 3), groups=32, base_width=4),
    'resnext101_32x8d': _row('layer4/2/bn3', Bottleneck, (3, 4, 23, 3), groups=32, base_width=8),
    'resnext101_64x4d': _row('layer4/2/bn3', Bottleneck, (3, 4, 23, 3), groups=64, base_width=4),
    'resnext101_32x16d': _row('layer4/2/bn3', Bottleneck, (3, 4, 23, 3), groups=32, base_width=16),
    'resnext101_32x32d': _row('layer4/2/bn3', Bottleneck, (3, 4, 23, 3), groups=32, base_width=32),
    'resnext101_32x48d': _row('layer4/2/bn3', Bottleneck, (3, 4, 23, 3), groups=32, base_width=48),
}

"""What a ResNet and its relatives are built of, with the names of torchvision and timm."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax

from fixres_jax.models import layers

# torch's defaults, with which every released weight of the family was trained.
BatchNorm = functools.partial(layers.BatchNorm, epsilon=1e-5, momentum=0.1)
Conv = functools.partial(layers.Conv, padding=layers.symmetric)
Gate = Callable[[jax.Array], jax.Array]  # makes its layers inside the block that calls it


class Downsample(nn.Module):
    """Bring the shortcut to the shape of the block's output: a 1x1 convolution and a BatchNorm.

    Attributes:
      features: output channels.
      stride: of the block.
      average: take means over windows of 2x2 for the stride, which the convolution has otherwise.
      bn_group_size: as in `layers.BatchNorm`.
    """

    features: int
    stride: int
    average: bool
    bn_group_size: int | None

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        if not self.average:
            x = Conv(self.features, 1, self.stride, name='0')(x)
            return BatchNorm(self.bn_group_size, name='1')(x, mode)
        if self.stride > 1:
            x = layers.avg_pool(x, 2, self.stride, layers.valid, ceil_mode=True, count_include_pad=False)
        x = Conv(self.features, 1, name='1')(x)
        return BatchNorm(self.bn_group_size, name='2')(x, mode)


def no_gate(y: jax.Array) -> jax.Array:
    """Leave a branch as it is."""
    return y


def squeeze_excite(y: jax.Array, share: float = 1 / 16) -> jax.Array:
    """Gate the channels of a branch, by way of a share of them, a multiple of 8."""
    squeezed = max(8, round(y.shape[-1] * share / 8) * 8)
    return layers.SqueezeExcite(squeezed, ('fc1', 'fc2'), name='se')(y)


def channel_attention(y: jax.Array) -> jax.Array:
    """Gate the channels of a branch, each by way of its neighbours."""
    return layers.ChannelAttention(name='se')(y)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut.

    Attributes:
      planes: channels of the block before its expansion.
      inner: channels of its 3x3 convolution, which differ from `planes` in wide ResNets and ResNeXts.
      stride: of the 3x3 convolution (the first one here).
      groups: of the 3x3 convolution.
      bn_group_size: as in `layers.BatchNorm`.
      zero_init_residual: start the last BatchNorm's scale from zero.
      average: as in `Downsample`.
      gate: of the branch, after its last BatchNorm.
      drop_path: rate of `layers.DropPath` on the branch, after its gate.
    """

    planes: int
    inner: int
    stride: int
    groups: int
    bn_group_size: int | None
    zero_init_residual: bool
    average: bool
    gate: Gate
    drop_path: float
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        y = Conv(self.inner, 3, self.stride, self.groups, name='conv1')(x)
        y = nn.relu(BatchNorm(self.bn_group_size, name='bn1')(y, mode))
        y = Conv(self.planes, 3, groups=self.groups, name='conv2')(y)
        y = BatchNorm(self.bn_group_size, zero_scale=self.zero_init_residual, name='bn2')(y, mode)
        return _join(self, x, y, mode)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions around a shortcut; attributes as in `BasicBlock`."""

    planes: int
    inner: int
    stride: int
    groups: int
    bn_group_size: int | None
    zero_init_residual: bool
    average: bool
    gate: Gate
    drop_path: float
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        y = Conv(self.inner, 1, name='conv1')(x)
        y = nn.relu(BatchNorm(self.bn_group_size, name='bn1')(y, mode))
        y = Conv(self.inner, 3, self.stride, self.groups, name='conv2')(y)
        y = nn.relu(BatchNorm(self.bn_group_size, name='bn2')(y, mode))
        y = Conv(self.planes * self.expansion, 1, name='conv3')(y)
        y = BatchNorm(self.bn_group_size, zero_scale=self.zero_init_residual, name='bn3')(y, mode)
        return _join(self, x, y, mode)


def _join(block: BasicBlock | Bottleneck, x: jax.Array, y: jax.Array, mode: layers.Mode) -> jax.Array:
    """Return what a block gives out, of what came in and its branch."""
    y = layers.DropPath(block.drop_path, name='drop_path')(block.gate(y), mode)
    if x.shape[-1] != y.shape[-1]:
        x = Downsample(y.shape[-1], block.stride, block.average, block.bn_group_size, name='downsample')(x, mode)
    return nn.relu(x + y)


class DeepStem(nn.Module):
    """Three 3x3 convolutions in the place of one of 7x7, the first two of half the channels."""

    features: int
    bn_group_size: int | None

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        for number, stride in ((0, 2), (3, 1)):
            x = Conv(self.features // 2, 3, stride, name=str(number))(x)
            x = nn.relu(BatchNorm(self.bn_group_size, name=str(number + 1))(x, mode))
        return Conv(self.features, 3, name='6')(x)


class StridedConv(nn.Module):
    """A 3x3 convolution in the place of the max-pool."""

    bn_group_size: int | None

    @nn.compact
    def __call__(self, x: jax.Array, mode: layers.Mode) -> jax.Array:
        x = Conv(x.shape[-1], 3, 2, name='0')(x)
        return nn.relu(BatchNorm(self.bn_group_size, name='1')(x, mode))

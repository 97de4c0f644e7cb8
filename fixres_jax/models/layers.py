"""What every architecture is built of; the families take all of it from here."""

import dataclasses
import difflib
import functools
import math
import re
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fixres_jax.core import trees
from fixres_jax.core.errors import UsageError
from fixres_jax.models import initializers
from fixres_jax.models.convolution import PADDINGS, Conv, Padding, same, symmetric, valid
from fixres_jax.models.devices import by_platform, gather
from fixres_jax.models.gates import ChannelAttention, SqueezeExcite
from fixres_jax.models.perceptron import LayerScale, Linear, Perceptron, ResponseNorm, linear_rates
from fixres_jax.models.pooling import adaptive_avg_pool, avg_pool, max_pool

__all__ = [
    'EVAL', 'PADDINGS', 'TRAIN', 'BatchNorm', 'ChannelAttention', 'Classifier', 'Conv', 'ConvNormAct',
    'DropPath', 'Dropout', 'Head', 'LayerNorm', 'LayerScale', 'Linear', 'Mode', 'Padding', 'Perceptron',
    'ResponseNorm', 'SqueezeExcite', 'adaptive_avg_pool', 'avg_pool', 'batch_norm_layers', 'gather', 'linear_rates',
    'max_pool', 'normalize', 'same', 'symmetric', 'valid',
]  # fmt: skip


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Mode:
    """Say how a model runs; hashable, and static wherever jax traces a function that takes it.

    Attributes:
      batch_norm: regex, matched with `re.fullmatch` against the '/' paths of BatchNorm layers
        ('layer4/2/bn3'): those that match normalize by the statistics of the batch and move their averages; '' selects
        none.
      dropout: whether dropout is active, in the architectures that have it.
      drop_path: whether drop path is: where the whole network trains, because a frozen trunk is in evaluation mode.
      population: the layers that match take the batch's own mean and population variance (divided by n, not n - 1) as
        their running values instead of moving towards them: what an exact average over many batches is made of.
    """

    batch_norm: str = ''
    dropout: bool = False
    drop_path: bool = False
    population: bool = False

    def selects(self, layer: str) -> bool:
        """Say whether a BatchNorm layer, by its '/' path, runs on the statistics of the batch."""
        # The path of a layer that is applied by itself is '', which the regex '' would match.
        return bool(self.batch_norm and re.fullmatch(self.batch_norm, layer))


EVAL = Mode()
TRAIN = Mode(batch_norm='.*', dropout=True, drop_path=True)


def batch_norm_layers(batch_stats: trees.Tree, regex: str) -> tuple[str, ...]:
    """List the BatchNorm layers that a regex puts on batch statistics.

    Args:
      batch_stats: the model's 'batch_stats' collection, of arrays or of shapes.
      regex: as in `Mode.batch_norm`; '' selects none.

    Returns:
      '/' paths, in the order of the tree.

    Raises:
      UsageError: when a regex that is not empty matches no layer, naming layers that come near.
    """
    names = tuple(name.removesuffix('/mean') for name in trees.flatten(batch_stats) if name.endswith('/mean'))
    try:
        selected = tuple(name for name in names if re.fullmatch(regex, name))
    except re.error as error:
        raise UsageError(f'batch_norm={regex!r} is not a regular expression: {error}.') from error
    if regex and not names and regex != '.*':  # which means all there are
        raise UsageError(f'batch_norm={regex!r} matches nothing: this network has no BatchNorm layers. Leave it empty.')
    if regex and names and not selected:
        near = ', '.join(difflib.get_close_matches(regex, names, n=3, cutoff=0.0))
        raise UsageError(f'batch_norm={regex!r} matches none of the {len(names)} BatchNorm layers. Near names: {near}.')
    return selected


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: jnp.dtype) -> jax.Array:
    """Bring uint8 images to (x / 255 - mean) / std, computed in float32; only cast floating images."""
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images.astype(dtype)
    if images.dtype != jnp.uint8:
        raise UsageError(f'Images are uint8, or floating and already normalized; these are {images.dtype}.')
    mean, std = (jnp.asarray(value, jnp.float32).reshape(1, 1, 1, -1) for value in (mean, std))
    return ((images.astype(jnp.float32) / 255 - mean) / std).astype(dtype)


class BatchNorm(nn.Module):
    """Normalize over batch and space, as torch does on each GPU of a data-parallel run.

    The layers whose path matches `mode.batch_norm` normalize every group of `group_size` images by the
    group's own statistics, and move the running averages by the mean over the groups of their means and
    unbiased variances. A group is consecutive images of the global batch, whose order is the same on any
    devices and hosts (see `sharding.make_mesh`). So the result depends on the batch and the group size, never
    on the devices. All others use the running averages. Statistics are float32; the output has the dtype of
    the input.

    Attributes:
      group_size: number of images that share statistics; None for the whole batch.
      epsilon: added to the variance.
      momentum: share of the new value in the running averages, as torch counts it.
      zero_scale: start from a scale of zero instead of one.
    """

    group_size: int | None
    epsilon: float
    momentum: float
    zero_scale: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        batch, *_, channels = x.shape
        start = nn.initializers.zeros if self.zero_scale else nn.initializers.ones
        scale = self.param('scale', start, (channels,), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable('batch_stats', 'var', jnp.ones, (channels,), jnp.float32)

        if not mode.selects('/'.join(self.path)):
            factor = lax.rsqrt(running_var.value + self.epsilon) * scale
            offset = bias - running_mean.value * factor
            factor, offset = (value.reshape((1,) * (x.ndim - 1) + (channels,)) for value in (factor, offset))
            return (x.astype(jnp.float32) * factor + offset).astype(x.dtype)
        size = _check_group(x.shape, self.group_size or batch)
        by_group = functools.partial(_normalize, size=size, epsilon=self.epsilon, reshape=True)
        by_image = functools.partial(_normalize, size=size, epsilon=self.epsilon, reshape=False)
        # XLA:GPU writes reshaped maps out, transposed and in float32; XLA:TPU reshapes for nothing, and does less then.
        y, mean, var = by_platform(x, scale, bias, tpu=by_group, default=by_image)
        if mode.population:
            running_mean.value, running_var.value = (value.mean(0) for value in (mean, var))
        elif not self.is_initializing():
            count = size * math.prod(x.shape[1:-1])
            _move(running_mean, mean, self.momentum)
            _move(running_var, var * (count / (count - 1)), self.momentum)
        return y


def _check_group(shape: tuple[int, ...], size: int) -> int:
    """Return the number of images that share statistics, or refuse a batch that does not divide into such groups."""
    batch, *space, _ = shape
    if batch % size:
        raise UsageError(
            f'A batch of {batch} images is not a multiple of bn_group_size={size}. Set bn_group_size to a '
            f'divisor of {batch}, or to None for one group (0 in a config), or the batch size to a multiple of {size}.'
        )
    if size * math.prod(space) == 1:
        raise UsageError(
            'Batch statistics of a single value do not exist: a group of one image has reached a map of 1x1. '
            'Raise bn_group_size or the resolution.'
        )
    return size


def _normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, size: int, epsilon: float, reshape: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalize groups of images by their own statistics.

    Args:
      x: [B, ..., C].
      scale, bias: float32[C].
      size: images of a group.
      epsilon: added to the variance.
      reshape: whether the maps themselves are reshaped into groups, or else the sums of each image and what each image
        is multiplied by. The result is the same but for rounding.

    Returns:
      (what x becomes, mean float32[B / size, C], biased variance float32[B / size, C]).
    """
    channels = x.shape[-1]
    maps = x.astype(jnp.float32).reshape(*((-1, size) if reshape else (-1,)), *x.shape[1:])
    inner = tuple(range(1, maps.ndim - 1))

    def mean_of_groups(values: jax.Array) -> jax.Array:
        return values.mean(inner).reshape(x.shape[0] // size, -1, channels).mean(1)

    def to_maps(values: jax.Array) -> jax.Array:
        repeated = values if reshape else jnp.repeat(values, size, axis=0)
        return repeated.reshape(-1, *[1] * len(inner), channels)

    mean = mean_of_groups(maps)
    # E[x^2] - E[x]^2 reads the activations once where the two-pass variance reads them twice.
    var = jnp.maximum(mean_of_groups(jnp.square(maps)) - jnp.square(mean), 0.0)
    # One multiplication and one addition an element, which compilers join to the convolutions around them.
    factor = lax.rsqrt(var + epsilon) * scale[None]
    y = maps * to_maps(factor) + to_maps(bias[None] - mean * factor)
    return y.reshape(x.shape).astype(x.dtype), mean, var


def _move(running: nn.Variable, of_groups: jax.Array, momentum: float) -> None:
    """Move a running average towards the mean over the groups."""
    running.value = (1 - momentum) * running.value + momentum * of_groups.mean(0)


class ConvNormAct(nn.Module):
    """Convolve, normalize and activate, with the layers 'conv' and 'bn'.

    Attributes:
      norm: makes the BatchNorm.
      features, kernel_size, stride, padding: as in `Conv`.
      activation: after the BatchNorm.
    """

    norm: Callable[..., nn.Module]
    features: int
    kernel_size: int | tuple[int, int]
    stride: int = 1
    padding: Padding = dataclasses.field(kw_only=True)
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        x = Conv(self.features, self.kernel_size, self.stride, padding=self.padding, name='conv')(x)
        return self.activation(self.norm(name='bn')(x, mode))


class Classifier(nn.Module):
    """Map embeddings to logits in float32, with torch's default initialisation of a linear layer."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[-1]
        draw = initializers.uniform(inputs**-0.5)
        kernel = gather(self.param('kernel', draw, (inputs, self.num_classes), jnp.float32))
        bias = self.param('bias', draw, (self.num_classes,), jnp.float32)
        # Without the precision an accelerator multiplies float32 in TF32 or bfloat16.
        return jnp.matmul(x.astype(jnp.float32), kernel, precision='highest') + bias.reshape(1, -1)


class LayerNorm(nn.Module):
    """Normalize the channels of each position in float32, in the dtype of the input."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        affine = (1,) * (x.ndim - 1) + (-1,)
        scale = self.param('scale', nn.initializers.ones, (x.shape[-1],), jnp.float32).reshape(affine)
        bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],), jnp.float32).reshape(affine)
        values = x.astype(jnp.float32)
        centred = values - values.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        return (centred * lax.rsqrt(variance + self.epsilon) * scale + bias).astype(x.dtype)


class Dropout(nn.Module):
    """Leave out numbers of the embedding where `mode.dropout` is on, and scale the others up."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        return _drop(self, x, mode.dropout, x.shape)


class DropPath(nn.Module):
    """Leave out whole images of a block's branch where `mode.drop_path` is on, and scale the others up.

    Huang et al. 2016, stochastic depth.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, mode: Mode) -> jax.Array:
        return _drop(self, x, mode.drop_path, (x.shape[0],) + (1,) * (x.ndim - 1))


def _drop(layer: Dropout | DropPath, x: jax.Array, active: bool, shape: tuple[int, ...]) -> jax.Array:
    """Zero what a mask of `shape` says; it follows from the place in the batch, not from the devices."""
    if not (active and layer.rate):
        return x
    kept = jax.random.bernoulli(layer.make_rng('dropout'), 1 - layer.rate, shape)
    return jnp.where(kept, x / (1 - layer.rate), jnp.zeros((), x.dtype))


class Head(nn.Module):
    """Hold the classifier as 'fc', where timm has it in a module of its own ('head/fc')."""

    num_classes: int

    @nn.compact
    def __call__(self, embedding: jax.Array) -> jax.Array:
        return Classifier(self.num_classes, name='fc')(embedding)

"""What every architecture is built of: Mode, BatchNorm, and convolution and pooling with torch's padding."""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from fixres_jax.core import trees
from fixres_jax.core.errors import UsageError


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Mode:
    """Say how a model runs; hashable, and static wherever jax traces a function that takes it.

    Attributes:
      batch_norm: regex, matched with `re.fullmatch` against the '/' paths of BatchNorm layers
        ('layer4/2/bn3'): those that match normalize by the statistics of the batch and move their averages; '' selects
        none.
      dropout: whether dropout is active, in the architectures that have it.
      population: the layers that match take the batch's own mean and population variance (divided by n, not n - 1) as
        their running values instead of moving towards them: what an exact average over many batches is made of.
    """

    batch_norm: str = ''
    dropout: bool = False
    population: bool = False

    def selects(self, layer: str) -> bool:
        """Say whether a BatchNorm layer, by its '/' path, runs on the statistics of the batch."""
        # The path of a layer that is applied by itself is '', which the regex '' would match.
        return bool(self.batch_norm and re.fullmatch(self.batch_norm, layer))


EVAL = Mode()
TRAIN = Mode(batch_norm='.*', dropout=True)


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
    if regex and not selected:
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


def max_pool(x: jax.Array) -> jax.Array:
    """Take the maximum over 3x3 windows with stride 2 and torch's padding of one pixel on every side.

    Of equal values the first of a window has the gradient, as in torch.
    """

    def whole(x):
        return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

    # The TPU has an instruction for the gradient. XLA:GPU keeps four indices of 32 bits a window for it, and on the CPU
    # the gradient below is 8 times faster than XLA's, if not in bfloat16, of which a CPU has no arithmetic.
    return lax.platform_dependent(
        x, tpu=whole, cpu=lambda x: _pool(x.astype(jnp.float32)).astype(x.dtype), default=_pool
    )


@jax.custom_vjp
def _pool(x: jax.Array) -> jax.Array:
    return _pool_forward(x)[0]


def _pool_forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Return the maxima, and (uint8 places of the maxima in their windows, an empty array of the height and width)."""
    height, width = x.shape[1:3]
    rows, columns = (height + 1) // 2, (width + 1) // 2
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    shape = (x.shape[0], rows, columns, x.shape[3])
    best, place = jnp.full(shape, -jnp.inf, x.dtype), jnp.zeros(shape, jnp.uint8)
    for number, (row, column) in enumerate(_WINDOW):
        value = padded[:, row : row + 2 * rows - 1 : 2, column : column + 2 * columns - 1 : 2]
        larger = (value > best) | jnp.isnan(value)
        best, place = jnp.where(larger, value, best), jnp.where(larger, jnp.uint8(number), place)
    return best, (place, jnp.zeros((0, height, width)))


def _pool_backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array]:
    place, (_, height, width) = kept[0], kept[1].shape
    _, rows, columns, _ = place.shape
    total = 0.0
    for number, (row, column) in enumerate(_WINDOW):
        part = jnp.where(place == number, gradient.astype(jnp.float32), 0.0)
        above, left = row - 1, column - 1
        below, right = height - above - (2 * rows - 1), width - left - (2 * columns - 1)
        total += lax.pad(part, 0.0, ((0, 0, 0), (above, below, 1), (left, right, 1), (0, 0, 0)))
    return (total.astype(gradient.dtype),)


_WINDOW = tuple((row, column) for row in range(3) for column in range(3))
_pool.defvjp(_pool_forward, _pool_backward)


def gather(kernel: jax.Array) -> jax.Array:
    """Return a kernel that is whole on every device of the mesh in the context; itself where no mesh is.

    The parameters may lie in parts on the devices, see `sharding.place`. Their gradients are summed into such parts.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return kernel
    return lax.with_sharding_constraint(kernel, PartitionSpec())


def by_device(convolve: Callable[..., jax.Array], x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return convolve(x, kernel), each device of the mesh in the context with its own images.

    For a convolution in groups XLA has to be told: on CPU and GPU it gathers the whole batch on every device otherwise
    (https://github.com/openxla/xla/issues/47945).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return convolve(x, kernel)
    images = PartitionSpec(mesh.axis_names)
    return jax.shard_map(convolve, in_specs=(images, PartitionSpec()), out_specs=images)(x, kernel)


def symmetric(side: int) -> tuple[int, int]:
    """Return torch's usual padding of an odd kernel: half of it on both ends."""
    return side // 2, side // 2


class Conv(nn.Module):
    """Convolve without bias, in the dtype of the input.

    Attributes:
      features: number of output channels.
      kernel_size: pixels of the square kernel's side, odd.
      stride: of both axes.
      padding: function of the kernel's side -> pixels before and after each axis, such as `symmetric`.
      groups: of channels, as in ResNeXt.
    """

    features: int
    kernel_size: int
    stride: int = 1
    groups: int = 1
    padding: Callable[[int], tuple[int, int]] = dataclasses.field(kw_only=True)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        side = self.kernel_size
        kernel = self.param(
            'kernel',
            nn.initializers.variance_scaling(2.0, 'fan_out', 'normal'),  # Kaiming, as torchvision's ResNets
            (side, side, x.shape[-1] // self.groups, self.features),
            jnp.float32,
        ).astype(x.dtype)
        kernel = gather(kernel)  # in the dtype that it is used in: the fewest bytes

        def convolve(x, kernel):
            return lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(self.stride, self.stride),
                padding=(self.padding(side), self.padding(side)),
                dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
                feature_group_count=self.groups,
            )

        def multiply(x, kernel):
            return lax.dot_general(x[:, :: self.stride, :: self.stride], kernel[0, 0], (((3,), (0,)), ((), ())))

        if side == 1 and self.groups == 1:
            # On two cores XLA:CPU's weight gradient of a 1x1 convolution runs at 11 GFLOP/s, of a product at 73. On
            # accelerators a convolution is fused with its neighbours and a product is not.
            return lax.platform_dependent(x, kernel, cpu=multiply, default=convolve)
        return by_device(convolve, x, kernel) if 1 < self.groups < x.shape[-1] else convolve(x, kernel)


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

        if mode.selects('/'.join(self.path)):
            size = _check_group(x.shape, self.group_size or batch)
            mean, var = _statistics(x, size)
            if mode.population:
                running_mean.value, running_var.value = (value.mean(0) for value in (mean, var))
            elif not self.is_initializing():
                count = size * math.prod(x.shape[1:-1])
                _move(running_mean, mean, self.momentum)
                _move(running_var, var * (count / (count - 1)), self.momentum)
        else:
            size, mean, var = batch, running_mean.value[None], running_var.value[None]
        # One multiplication and one addition an element, which compilers join to the convolutions around them.
        factor = lax.rsqrt(var + self.epsilon) * scale[None]
        factor, offset = (_of_images(value, size, x.ndim) for value in (factor, bias[None] - mean * factor))
        return (x.astype(jnp.float32) * factor + offset).astype(x.dtype)


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


def _statistics(x: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Return mean and biased variance of each group of `size` images, float32[G, C]."""
    space = tuple(range(1, x.ndim - 1))

    def mean_of_groups(of_pixels):
        # Over space first: a reshape of the maps into groups makes XLA:GPU write them out, transposed, in float32.
        return of_pixels.mean(space).reshape(-1, size, x.shape[-1]).mean(1)

    x = x.astype(jnp.float32)
    mean = mean_of_groups(x)
    # E[x^2] - E[x]^2 reads the activations once where the two-pass variance reads them twice.
    return mean, jnp.maximum(mean_of_groups(jnp.square(x)) - jnp.square(mean), 0.0)


def _of_images(of_groups: jax.Array, size: int, ndim: int) -> jax.Array:
    """Repeat values of groups, [G, C], for their images: [B, 1, 1, C], of as many axes as the maps have."""
    groups, channels = of_groups.shape
    repeated = jnp.broadcast_to(of_groups[:, None], (groups, size, channels))
    return repeated.reshape(groups * size, *[1] * (ndim - 2), channels)


def _move(running: nn.Variable, of_groups: jax.Array, momentum: float) -> None:
    """Move a running average towards the mean over the groups."""
    running.value = (1 - momentum) * running.value + momentum * of_groups.mean(0)


class Classifier(nn.Module):
    """Map embeddings to logits in float32, with torch's default initialisation of a linear layer."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[-1]
        kernel = self.param('kernel', _uniform, (inputs, self.num_classes), inputs)
        bias = self.param('bias', _uniform, (self.num_classes,), inputs)
        kernel = gather(kernel)
        # Without the precision an accelerator multiplies float32 in TF32 or bfloat16.
        return jnp.matmul(x.astype(jnp.float32), kernel, precision='highest') + bias.reshape(1, -1)


def _uniform(key: jax.Array, shape: tuple[int, ...], inputs: int) -> jax.Array:
    """Draw from U(-1/sqrt(inputs), 1/sqrt(inputs))."""
    bound = inputs**-0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

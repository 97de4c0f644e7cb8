"""ResNets with global covariance pooling instead of the average pool (iSQRT-COV, Li et al. 2018, arXiv 1712.01034).

Names are those of the authors' code, fast-MPN-COV.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fixres_jax.models import layers, resnet
from fixres_jax.models.resnet_blocks import BatchNorm, Bottleneck, Conv

REDUCED = 256  # channels whose covariance is taken
ITERATIONS = 5  # of Newton and Schulz
SMALLEST = 1e-12  # trace of a covariance, which is divided by: that of a blank map is 0


def covariance_pool(x: jax.Array, mode: layers.Mode, bn_group_size: int | None) -> tuple[jax.Array, jax.Array]:
    """Return maps of fewer channels, and the square root of their covariance as the embedding.

    Args:
      x: [B, h, w, C].
      mode: whether the BatchNorm runs on batch statistics.
      bn_group_size: as in `layers.BatchNorm`.

    Returns:
      ([B, h, w, 256], float32[B, 32896]: the upper triangle of the root, row by row).
    """
    x = Conv(REDUCED, 1, name='layer_reduce')(x)
    x = nn.relu(BatchNorm(bn_group_size, name='layer_reduce_bn')(x, mode))
    root = square_root(covariance(x), ITERATIONS)
    rows, columns = np.triu_indices(REDUCED)
    return x, root[:, rows, columns]


def covariance(x: jax.Array) -> jax.Array:
    """Return the covariance of the channels over the positions, divided by their number: float32[B, C, C]."""
    values = x.astype(jnp.float32).reshape(x.shape[0], -1, x.shape[-1])
    centred = values - values.mean(1, keepdims=True)
    return _multiply(centred.swapaxes(1, 2), centred) / centred.shape[1]


def square_root(matrices: jax.Array, iterations: int) -> jax.Array:
    """Approach the square roots of positive semidefinite matrices.

    Args:
      matrices: float32[B, C, C]; each is divided by its trace before, so that the iteration converges, and its root
        multiplied by the root of the trace afterwards.
      iterations: of Newton and Schulz, at least 1.
    """
    trace = jnp.maximum(jnp.trace(matrices, axis1=1, axis2=2), SMALLEST).reshape(-1, 1, 1)
    identity = jnp.eye(matrices.shape[-1], dtype=matrices.dtype)[None]
    root = matrices / trace
    inverse = 1.5 * identity - 0.5 * root
    root = _multiply(root, inverse)
    for _ in range(iterations - 1):
        change = 1.5 * identity - 0.5 * _multiply(inverse, root)
        root, inverse = _multiply(root, change), _multiply(change, inverse)
    return root * jnp.sqrt(trace)


def _multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision='highest')


NOTE = 'statistics of the BatchNorm of the reduction before the covariance, and the classifier of its 32,896 numbers'


def _row(*depths: int):
    return resnet.row(
        'layer_reduce_bn', Bottleneck, depths, last_stride=1, pool=covariance_pool, note=NOTE, usual={'stride': 16}
    )


ROWS = {'resnet50_mpncov': _row(3, 4, 6, 3), 'resnet101_mpncov': _row(3, 4, 23, 3)}

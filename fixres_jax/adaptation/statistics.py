"""Exact statistics of BatchNorm layers: population mean and variance of their inputs, over a part of the images."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fixres_jax import models
from fixres_jax.adaptation import embeddings
from fixres_jax.core import trees
from fixres_jax.data import sources
from fixres_jax.data.sources import Source
from fixres_jax.data.transforms import Transform
from fixres_jax.machines import sharding
from fixres_jax.machines.runtime import Feed, one_pass
from fixres_jax.models import Model
from fixres_jax.weights.network import Network

# Of the training images, for the statistics: with a tenth held out the whole stays within 1.2 passes.
STATISTICS_SHARE = 1 / 16
STATISTICS_LEAST = 256  # images


def measure(
    network: Network,
    source: Source,
    transforms: Mapping[Any, Transform],
    feed: Feed,
    *,
    batch_norm: str,
) -> dict[Any, dict[str, np.ndarray]]:
    """Measure the exact mean and variance of the inputs of BatchNorm layers over all whole batches of a source.

    Layers are taken in the network's order, one pass each, so that each sees what its predecessors' new statistics make
    of the images.

    Args:
      network: on the devices.
      source: images.
      transforms: key, such as the resolution, -> transform; each file is decoded once for all.
      feed: how the images pass; a batch is at most the source, and a multiple of the devices.
      batch_norm: regex of the layers.

    Returns:
      key -> {'layer4/2/bn3/mean': float32[C], 'layer4/2/bn3/var': float32[C], ...}: population values, of all positions
      of all images. The batches differ by nothing in size, so their moments average without weights.
    """
    devices = feed.mesh.size
    batch_size = max(devices, min(feed.batch_size, len(source)) // devices * devices)
    num_batches = max(1, len(source) // batch_size)
    # Fewer images than devices are repeated, so that every device has one.
    whole = sources.subset(source, np.arange(num_batches * batch_size) % len(source))
    statistics: dict[Any, dict[str, np.ndarray]] = {key: {} for key in transforms}
    layers = models.batch_norm_layers(network.variables['batch_stats'], batch_norm)
    for layer in _in_order(network.model, layers):
        step = _make_moments(network.model, layer, feed.mesh)
        sums = dict.fromkeys(transforms, 0.0)  # key -> float64[2, C], of the batches' means and mean squares
        for _, _, batch in one_pass(whole, transforms, dataclasses.replace(feed, batch_size=batch_size)):
            for key, image in batch['image'].items():
                mean, var = (np.asarray(x, np.float64) for x in step(network.variables, statistics[key], image))
                sums[key] = sums[key] + np.stack([mean, var + mean**2])
        for key, total in sums.items():
            mean, square = total / num_batches
            statistics[key][f'{layer}/mean'] = np.float32(mean)
            statistics[key][f'{layer}/var'] = np.float32(np.maximum(square - mean**2, 0.0))
    return statistics


@functools.cache
def _make_moments(model: Model, layer: str, mesh: Mesh) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Return the jitted function (variables, changes, image) -> mean and variance of a layer's input in the batch."""
    mode = models.Mode(re.escape(layer), population=True)
    whole = model.clone(bn_group_size=None)  # The batch is one group: that of training has no say here.

    def moments(variables, changes, image):
        _, new = whole.apply(embeddings.change(variables, changes), image, mode, mutable=['batch_stats'])
        new = trees.flatten(new['batch_stats'])
        return new[f'{layer}/mean'], new[f'{layer}/var']

    return sharding.jit(moments, mesh, out_shardings=sharding.replicated(mesh))


def _in_order(model: Model, layers: tuple[str, ...]) -> tuple[str, ...]:
    """Return layers in the order in which the network calls them."""
    if len(layers) < 2:
        return layers  # without tracing the network
    names = model.names()
    return tuple(sorted(layers, key=lambda layer: names.index(f'batch_stats/{layer}/mean')))


def sample(source: Source, num_images: int, seed: int) -> Source:
    """Return a random part of the training images, as large as the statistics are measured on."""
    share = max(STATISTICS_LEAST, round(STATISTICS_SHARE * len(source)))
    return sources.sample(source, min(num_images, share), seed)
